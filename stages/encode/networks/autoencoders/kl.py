"""Variational autoencoders of images: those of SD, SDXL, SD3, FLUX.1, VA-VAE, and all like them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.encode.networks.autoencoders.family import Family, halvings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Variational(Family):
    """AutoencoderKL."""

    usual: ClassVar[Mapping[str, Any]] = {
        "block_out_channels": (64,),
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    }

    def whole(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What has means of its channels is not multiplied by SD's factor unless it says so."""
        has_means = config.get("latents_mean") is not None
        return {**super().whole({"scaling_factor": 1.0} if has_means else {}), **config}

    def downsampling(self, config: Mapping[str, Any]) -> int:
        return halvings(config["block_out_channels"])

    def scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """With means and deviations of channels, where the configuration has them (REPA-E)."""
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is None or deviation is None:
            return super().scaling(config)
        return {
            **super().scaling(config),
            "latents_mean": list(mean),
            "latents_std": list(deviation),
        }

    def encode(self, model: Any, images: Tensor) -> Tensor:
        moments: Tensor = model.encode(images).latent_dist.parameters
        return moments
