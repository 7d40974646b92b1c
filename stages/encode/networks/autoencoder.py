"""Images to latent moments and back, with any diffusers AutoencoderKL.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from cache.recipe import RecipeValue
from stages.encode.network_settings import Precision
from stages.encode.networks.autoencoder_files import (
    HUB_CONFIGS,
    KIND,
    AutoencoderError,
    downsampling,
    read_vae_config,
)
from stages.encode.networks.frozen_networks import (
    UNTRAINED,
    FittingNetwork,
    compute,
    weights_sha256,
)

Rounding = Literal["truncate", "round"]

# The files of an autoencoder in the diffusers format, under either of their names.
CONFIG = ("config.json",)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


class Autoencoder:
    """A frozen AutoencoderKL, never tiled and never sliced.

    location: a hub name or a local folder in the diffusers format; precision: in which it
    encodes; untrained: with random weights instead, of which the meta device has shapes alone.
    Raises AutoencoderError if it cannot be loaded.
    """

    def __init__(
        self,
        location: str,
        device: torch.device,
        precision: Precision = "float32",
        *,
        untrained: bool = False,
    ) -> None:
        model = _create(location, device) if untrained else _load(location)
        model = model.eval().requires_grad_(False).to(device)
        model.disable_tiling()
        model.disable_slicing()
        self._model = model
        self._device = device
        self._precision = precision
        self._is_untrained = untrained
        # What convolutions like best: 1.2 to 1.4 times as fast on a CPU, where decoding gains
        # nothing, and the layout of tensor cores.
        if device.type == "cpu" or precision != "float32":
            self._format = torch.channels_last
        else:
            self._format = torch.contiguous_format
        model.encoder.to(memory_format=self._format)
        self._decoder = FittingNetwork("the VAE's decoder", self._pixels)

    def recipe(self) -> dict[str, RecipeValue]:
        """What decides the bytes of the latents this model makes, and how they are scaled."""
        digest = UNTRAINED if self._is_untrained else weights_sha256(self._model)
        return {**_scaling(self._model.config), "weights_sha256": digest}

    @torch.inference_mode()
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """`moments`: mean and standard deviation of the posterior, float32 [B, 2C, h, w].

        images: uint8 [B, 3, S, S]. Moments are not scaled.
        """
        inputs = images.to(self._device).float() / 127.5 - 1
        inputs = inputs.contiguous(memory_format=self._format)
        outputs = compute(self._moments, inputs, self._precision)
        mean, log_variance = outputs["moments"].chunk(2, dim=1)
        moments = torch.cat([mean, torch.exp(0.5 * log_variance.clamp(-30, 20))], dim=1)
        return {**outputs, "moments": moments}

    @property
    def channels(self) -> int:
        """Of its latents."""
        return int(self._model.config.latent_channels)

    @torch.inference_mode()
    def decode(self, latents: Tensor, uint8: Rounding = "truncate") -> Tensor:
        """Images, uint8 [B, 3, S, S] on the CPU, of scaled latents [B, C, h, w].

        uint8: how values become whole numbers. REPA's published evaluation truncates, those of
        SiT and DiT round. Batches that the device has no memory for are halved.
        """
        config = self._model.config
        raw = latents.to(self._device).float() / config.scaling_factor + (config.shift_factor or 0)
        pixels = compute(self._decoder, raw, "float32")["pixels"] * 127.5 + 127.5
        if uint8 == "round":
            pixels = pixels + 0.5
        return pixels.clamp(0, 255).to(torch.uint8).cpu()

    def _moments(self, inputs: Tensor) -> dict[str, Tensor]:
        """Mean and logarithm of the variance, [B, 2C, h, w]."""
        return {"moments": self._model.encode(inputs).latent_dist.parameters}

    def _pixels(self, latents: Tensor) -> dict[str, Tensor]:
        return {"pixels": self._model.decode(latents).sample}


def autoencoder_scaling(location: str) -> dict[str, RecipeValue]:
    """How the latents of an autoencoder are scaled, from its configuration alone.

    Raises AutoencoderError if that cannot be read.
    """
    return _scaling(_full_config(location))


def moments_shape(location: str, side: int) -> tuple[int, int, int]:
    """(2C, h, w) of the moments of an image of `side` px, from the configuration alone.

    Raises AutoencoderError if that cannot be read.
    """
    config = _full_config(location)
    place = side // downsampling(config)
    return 2 * int(config["latent_channels"]), place, place


def _full_config(location: str) -> Mapping[str, Any]:
    """The configuration with what published ones leave out as usual, SD-VAE's the scale."""
    from stages.vision import AutoencoderKL

    parameters = inspect.signature(AutoencoderKL.__init__).parameters.values()
    usual = {parameter.name: parameter.default for parameter in parameters}
    return usual | dict(_read_config(location))


def _scaling(config: Mapping[str, Any]) -> dict[str, RecipeValue]:
    return {
        "model": KIND,
        "latent_channels": config["latent_channels"],
        "scaling_factor": config["scaling_factor"],
        "shift_factor": config.get("shift_factor") or 0.0,
    }


def _read_config(location: str) -> Mapping[str, Any]:
    """The configuration of an AutoencoderKL of the hub or of a local folder."""
    if location in HUB_CONFIGS:
        return HUB_CONFIGS[location]
    return _checked_config(_folder(location, CONFIG))


def _checked_config(folder: Path) -> Mapping[str, Any]:
    try:
        return read_vae_config(folder)
    except AutoencoderError as error:
        raise AutoencoderError(f"latents.vae: {error}.") from error


def _folder(location: str, *files: Sequence[str]) -> Path:
    """A local folder, or that of the hub's cache with files of a repository."""
    if Path(location).is_dir():
        return Path(location)
    from stages.encode.networks.hub import (  # half a second: only where one is loaded
        HubError,
        fetch,
    )

    try:
        return fetch(location, *files)
    except HubError as error:
        name = Path(location).name
        told = error.told(
            f"Where there is no network, set latents.vae to a folder that diffusers saved, as "
            f"./{name}, with these files"
        )
        raise AutoencoderError(f"latents.vae: cannot load {location!r}: {told}") from error


def _create(location: str, device: torch.device) -> Any:
    from stages.vision import AutoencoderKL

    with device:
        return AutoencoderKL.from_config(dict(_read_config(location)))


def _load(location: str) -> Any:
    folder = _folder(location, CONFIG, WEIGHTS)
    _checked_config(folder)
    from stages.vision import AutoencoderKL

    try:
        model, loading = AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise AutoencoderError(f"latents.vae: cannot load {location!r}: {error}") from error
    if lacking := loading["missing_keys"]:
        raise AutoencoderError(
            f"latents.vae: {len(lacking)} of the autoencoder's tensors are missing in {location}, "
            f"{lacking[0]} among them."
        )
    return model
