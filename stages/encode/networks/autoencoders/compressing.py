"""Autoencoders that give latents, and no posterior: DC-AE's and TAESD's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.encode.networks.autoencoders.family import Family, halvings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Compressing(Family):
    """Whose configurations list the blocks of their encoder."""

    has_posterior = False

    def downsampling(self, config: Mapping[str, Any]) -> int:
        return halvings(config["encoder_block_out_channels"])


class DeepCompression(Compressing):
    """AutoencoderDC."""

    usual: ClassVar[Mapping[str, Any]] = {
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "latent_channels": 32,
        "scaling_factor": 1.0,
    }

    def encode(self, model: Any, images: Tensor) -> Tensor:
        latents: Tensor = model.encode(images).latent
        return latents


class Tiny(Compressing):
    """AutoencoderTiny."""

    usual: ClassVar[Mapping[str, Any]] = {
        "encoder_block_out_channels": (64, 64, 64, 64),
        "latent_channels": 4,
        "scaling_factor": 1.0,
    }

    def encode(self, model: Any, images: Tensor) -> Tensor:
        latents: Tensor = model.encode(images).latents
        return latents
