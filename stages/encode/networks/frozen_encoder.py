"""Images to patch tokens and class tokens, with frozen encoders.

B images, S their side in px, T tokens on a square grid, P class and register tokens before them,
D features.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.encode.build_settings import Precision
from stages.encode.networks.network_precision import compute
from stages.encode.networks.network_weights import (
    UNTRAINED,
    create_network,
    load_network,
    weights_sha256,
)
from stages.encode.networks.registry import EncoderError, EncoderSpec, Layer


class FrozenEncoder:
    """A frozen encoder with its preprocessing.

    input_size: side of its input in px; weights: a local file instead of the published weights;
    untrained: with random weights instead, of which the meta device has shapes alone. Raises
    EncoderError if it cannot be loaded, or not for this size.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        input_size: int,
        weights: Path | None,
        device: torch.device,
        precision: Precision = "float32",
        *,
        untrained: bool = False,
    ) -> None:
        if problem := spec.size_problem(input_size):
            raise EncoderError(f"input_size: {problem}.")
        self._spec = spec
        self._input_size = input_size
        self._precision = precision
        if untrained:
            with device:
                network = create_network(spec, input_size)
        else:
            network = load_network(spec, input_size, weights)
        self._model: Any = network.eval().requires_grad_(False).to(device)
        self._device = device
        self.weights_sha256 = UNTRAINED if untrained else weights_sha256(self._model)
        self._mean = torch.tensor(spec.mean, device=device)[:, None, None]
        self._std = torch.tensor(spec.std, device=device)[:, None, None]

    @property
    def has_class_token(self) -> bool:
        """Whether `features` has a class token."""
        return self._spec.has_class_token

    @torch.inference_mode()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What the encoder gives for images, uint8 [B, 3, S, S], float32.

        `tokens`: its patch tokens [B, T, D]; `class_token`: of the same layer [B, D], if it has
        one.
        """
        inputs = self._preprocess(images.to(self._device).float() / 255)
        return compute(self._forward, inputs, self._precision)

    def _forward(self, inputs: Tensor) -> dict[str, Tensor]:
        prefix, tokens = run_to_layer(self._model, inputs, self._spec.layer)
        if self._spec.has_class_token:
            return {"tokens": tokens, "class_token": prefix[:, 0]}
        return {"tokens": tokens}

    def _preprocess(self, images: Tensor) -> Tensor:
        if self._spec.order == "normalise, resize":
            return self._resize((images - self._mean) / self._std)
        return (self._resize(images) - self._mean) / self._std

    def _resize(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self._input_size:
            return images
        return F.interpolate(
            images, size=self._input_size, mode="bicubic", antialias=self._spec.antialias
        )


def run_to_layer(network: Any, inputs: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Prefix tokens [B, P, D] and patch tokens [B, T, D] of a timm model at a layer.

    inputs: [B, 3, S, S], normalised. Of a feature map every place is a patch token.
    """
    if layer == "before norm":
        ((tokens, prefix),) = network.forward_intermediates(
            inputs,
            indices=1,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return prefix, tokens
    if layer == "norm":
        features = network.forward_features(inputs)
        if features.ndim == 3:
            prefixes = getattr(network, "num_prefix_tokens", 0)
            return features[:, :prefixes], features[:, prefixes:]
        has_channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        tokens = features.flatten(1, 2) if has_channels_last else features.flatten(2).mT
        return tokens[:, :0], tokens
    (stage,) = network.forward_intermediates(
        inputs, indices=[layer], stop_early=True, intermediates_only=True
    )
    tokens = stage.flatten(2).mT
    return tokens[:, :0], tokens
