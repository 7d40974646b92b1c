"""Images to latent moments and back, with any diffusers AutoencoderKL.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

from typing import Any

import torch
from torch import Tensor

from cache.errors import RepaCacheError
from cache.recipe import RecipeValue
from stages.encode.weights import weights_sha256


class AutoencoderError(RepaCacheError):
    """The autoencoder cannot be loaded."""


class Autoencoder:
    """A frozen AutoencoderKL in float32, never tiled."""

    def __init__(self, location: str, device: torch.device, precision: str = "float32") -> None:
        """Load from a hub name or a local folder in the diffusers format."""
        from stages.vision import AutoencoderKL  # a second and more: only where one is used

        try:
            model = AutoencoderKL.from_pretrained(
                location, torch_dtype=torch.float32, low_cpu_mem_usage=False
            )
        except (OSError, ValueError) as error:
            raise AutoencoderError(f"latents.vae: cannot load {location!r}: {error}") from error
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._device = device

    def recipe(self) -> dict[str, RecipeValue]:
        """What decides the bytes of the latents this model makes, and how they are scaled."""
        config = self._model.config
        return {
            "model": "AutoencoderKL",
            "weights_sha256": weights_sha256(self._model),
            "latent_channels": config.latent_channels,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor or 0.0,
        }

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Mean and standard deviation of the posterior, float32 [B, 2C, h, w], not scaled.

        images: uint8 [B, 3, S, S].
        """
        posterior = self._model.encode(images.to(self._device).float() / 127.5 - 1).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images, uint8 [B, 3, S, S] on the CPU, of scaled latents [B, C, h, w].

        Values are cut off, not rounded, as in the published evaluation.
        """
        config = self._model.config
        raw = latents.to(self._device).float() / config.scaling_factor + (config.shift_factor or 0)
        pixels: Tensor = self._model.decode(raw).sample * 127.5 + 127.5
        return pixels.clamp(0, 255).to(torch.uint8).cpu()


def autoencoder_scaling(location: str) -> dict[str, RecipeValue]:
    """How the latents of an autoencoder are scaled, from its configuration alone."""
    from stages.vision import AutoencoderKL

    config = AutoencoderKL.load_config(location)
    return {
        "model": "AutoencoderKL",
        "latent_channels": config["latent_channels"],
        "scaling_factor": config["scaling_factor"],
        "shift_factor": config.get("shift_factor") or 0.0,
    }
