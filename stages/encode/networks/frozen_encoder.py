"""Images to patch tokens and class tokens, with frozen encoders.

B images, S their side in px, T tokens on a square grid, P class and register tokens before them,
D features.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.encode.network_settings import Precision
from stages.encode.networks.frozen_networks import UNTRAINED, compute
from stages.encode.networks.registry import EncoderError, EncoderSpec, library_of


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
        self._library = library_of(spec)
        self._input_size = input_size
        self._precision = precision
        if untrained:
            with device:
                network = self._library.create_network(spec, input_size)
        else:
            network = self._library.load_network(spec, input_size, weights)
        self._model: Any = network.eval().requires_grad_(False).to(device)
        self._device = device
        self.weights_sha256 = UNTRAINED
        if not untrained:
            self.weights_sha256 = self._library.weights_sha256(self._model)
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
        prefix, tokens = self._library.run_to_layer(self._model, inputs, self._spec)
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
        side, spec = self._input_size, self._spec
        resize = partial(F.interpolate, mode=spec.interpolation, antialias=spec.antialias)
        if not spec.is_clamped:
            return resize(images, size=side)
        # As libraries of images do, which keep whole levels between rows and columns.
        rows = resize(images, size=(images.shape[-2], side)).clamp(0, 1)
        return resize(rows, size=side).clamp(0, 1)
