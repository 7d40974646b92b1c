"""Images to latents and back, with any autoencoder of diffusers or LDM.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from cache.recipe import RecipeValue
from stages.encode.network_settings import LatentsSettings, Precision
from stages.encode.networks.autoencoder_configs import (
    CONFIG,
    WEIGHTS,
    Config,
    checked_config,
    located,
    scaling_recipe,
    shapes,
    told_of,
)
from stages.encode.networks.autoencoder_files import is_weight_file, whole_config
from stages.encode.networks.autoencoders import AutoencoderError, kind_of
from stages.encode.networks.autoencoders.ldm import read_state
from stages.encode.networks.frozen_networks import (
    UNTRAINED,
    FittingNetwork,
    compute,
    weights_sha256,
)
from stages.latents import EXACT, MOMENTS, LatentScaling, Rule, scaling_in

Rounding = Literal["truncate", "round"]
# Diffusers needs a number, and LDM's files have none.
UNUSED_FACTOR = 1.0


class NoAutoencoder:
    """Crops in the place of latents. scaling: of no use."""

    channels = 3
    scaling: LatentScaling | None = None

    def decode(self, latents: Tensor, uint8: Rounding = "truncate") -> Tensor:
        """Images, uint8 [B, 3, S, S] on the CPU, of what models make, [B, 3, S, S]."""
        # In the order of JiT's code, whose values at a half then go the same way.
        pixels = ((latents.float() + 1) / 2 * 255).clamp(0, 255)
        return (pixels.round() if uint8 == "round" else pixels).to(torch.uint8).cpu()


def open_decoder(
    latents: LatentsSettings, device: torch.device, scaling: LatentScaling | None = None
) -> "Autoencoder | NoAutoencoder":
    """What makes images of what models make. scaling: of their latents, where that is another."""
    if latents.is_pixels:
        return NoAutoencoder()
    autoencoder = Autoencoder.of(latents, device)
    autoencoder.scaling = scaling
    return autoencoder


class Autoencoder:
    """A frozen autoencoder, never tiled and never sliced.

    location: a hub name, a local folder in the diffusers format, or a file of LDM; precision: in
    which it encodes; told: what of its scaling is not as its configuration has it, by the names of
    `stages.latents`; rule: by which latents are scaled; untrained: with random weights instead, of
    which the meta device has shapes alone. scaling: of the latents that it decodes. Raises
    AutoencoderError if it cannot be loaded.
    """

    def __init__(
        self,
        location: str,
        device: torch.device,
        precision: Precision = "float32",
        *,
        told: Mapping[str, RecipeValue] | None = None,
        rule: Rule = "auto",
        untrained: bool = False,
    ) -> None:
        if untrained:
            config = shapes(location)
            model = _create(config, device)
        else:
            config, model = _load(location)
        self._family, self._config = whole_config(config, location)
        model = model.eval().requires_grad_(False).to(device)
        for name in ("disable_tiling", "disable_slicing"):
            getattr(model, name, lambda: None)()
        self._model = model
        self._device = device
        self._precision = precision
        self._is_untrained = untrained
        self._told, self._rule = told or {}, rule
        self.scaling: LatentScaling | None = None
        # What convolutions like best: 1.2 to 1.4 times as fast on a CPU, where decoding gains
        # nothing, and the layout of tensor cores.
        self._format = torch.contiguous_format
        if self._family.is_flat and (device.type == "cpu" or precision != "float32"):
            self._format = torch.channels_last
        if self._family.is_flat:
            model.encoder.to(memory_format=self._format)
        self._alone: AbstractContextManager[Any] = (
            nullcontext() if self._family.is_shared else Lock()
        )
        self._decoder = FittingNetwork("the VAE's decoder", self._pixels)

    @classmethod
    def of(
        cls, latents: LatentsSettings, device: torch.device, *, untrained: bool = False
    ) -> "Autoencoder":
        """The one that settings name."""
        return cls(
            latents.location,
            device,
            latents.precision,
            told={} if untrained else told_of(latents),
            rule=latents.scaling,
            untrained=untrained,
        )

    def recipe(self) -> dict[str, RecipeValue]:
        """What decides the bytes of the latents this model makes, and how they are scaled."""
        digest = UNTRAINED if self._is_untrained else weights_sha256(self._model)
        return {**scaling_recipe(self._config, self._told), "weights_sha256": digest}

    @property
    def array(self) -> str:
        """What `encode` gives: moments, or latents of an autoencoder without a posterior."""
        return MOMENTS if self._family.has_posterior else EXACT

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`moments`: mean and standard deviation of the posterior, float32 [B, 2C, h, w].

        Or `latents`, float32 [B, C, h, w], of an autoencoder without one. images: uint8
        [B, 3, S, S]. Neither is scaled.
        """
        inputs = images.to(self._device).float() / 127.5 - 1
        inputs = inputs.contiguous(memory_format=self._format)
        with self._alone:
            outputs = compute(self._encoded, inputs, self._precision)
        if not self._family.has_posterior:
            return outputs
        mean, log_variance = outputs[MOMENTS].chunk(2, dim=1)
        moments = torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30, 20))], dim=1)
        return {**outputs, MOMENTS: moments}

    @property
    def channels(self) -> int:
        """Of its latents."""
        return self._family.channels(self._config)

    @torch.inference_mode()
    def decode(self, latents: Tensor, uint8: Rounding = "truncate") -> Tensor:
        """Images, uint8 [B, 3, S, S] on the CPU, of scaled latents [B, C, h, w].

        uint8: how values become whole numbers. REPA's published evaluation truncates, those of
        SiT and DiT round. Batches that the device has no memory for are halved. Raises ScalingError
        if it is not known how they are scaled.
        """
        if self.scaling is None:
            self.scaling = scaling_in(scaling_recipe(self._config, self._told), self._rule)
        raw = self.scaling.to(self._device).raw(latents.to(self._device).float())
        with self._alone:
            pixels = compute(self._decoder, raw, "float32")["pixels"] * 127.5 + 127.5
        if uint8 == "round":
            pixels = pixels + 0.5
        return pixels.clamp(0, 255).to(torch.uint8).cpu()

    def _encoded(self, inputs: Tensor) -> dict[str, Tensor]:
        """Mean and logarithm of the variance, [B, 2C, h, w], or latents."""
        return {self.array: self._family.encode(self._model, inputs)}

    def _pixels(self, latents: Tensor) -> dict[str, Tensor]:
        return {"pixels": self._family.decode(self._model, latents)}


def _create(config: Config, device: torch.device) -> Any:
    with device:
        return _network(config).from_config(_for_diffusers(config))


def _network(config: Config) -> Any:
    """The class of a configuration."""
    from stages import vision

    return getattr(vision, kind_of(config))


def _for_diffusers(config: Config) -> dict[str, Any]:
    if config.get("scaling_factor", 0) is None:
        return {**config, "scaling_factor": UNUSED_FACTOR}
    return dict(config)


def _load(location: str) -> tuple[Config, Any]:
    """A network's configuration, and the network with its weights."""
    place = located(location, CONFIG, WEIGHTS)
    config = checked_config(place)
    load = _load_file if is_weight_file(location) else _load_folder
    return config, load(place, config)


def _load_folder(folder: Path, config: Config) -> Any:
    try:
        model, loading = _network(config).from_pretrained(
            folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AutoencoderError(f"latents.vae: cannot load {folder}: {error}") from error
    _check_names(loading["missing_keys"], loading["unexpected_keys"], folder)
    return model


def _load_file(path: Path, config: Config) -> Any:
    model, state = _create(config, torch.device("cpu")), read_state(path)
    own = model.state_dict()
    _check_names(sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys()), path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise AutoencoderError(f"latents.vae: cannot load {path}: {error}") from error
    return model.float()


def _check_names(missing: Sequence[str], left_over: Sequence[str], where: Path) -> None:
    """Raise AutoencoderError unless a file has the network's tensors, and no others."""
    if missing:
        raise AutoencoderError(
            f"latents.vae: {len(missing)} of the autoencoder's tensors are missing in {where}, "
            f"{missing[0]} among them."
        )
    if left_over:
        raise AutoencoderError(
            f"latents.vae: {len(left_over)} tensors in {where} are of no part of the "
            f"autoencoder that its configuration describes, {left_over[0]} among them."
        )
