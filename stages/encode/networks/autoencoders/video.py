"""Autoencoders of videos, given a single frame: Qwen-Image's and Wan's.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.encode.networks.autoencoders.kl import Variational

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Of the axis of frames.
FRAMES = 2


class Video(Variational):
    """AutoencoderKLQwenImage and AutoencoderKLWan, which keep frames between calls."""

    usual: ClassVar[Mapping[str, Any]] = {
        "z_dim": 16,
        "temperal_downsample": (False, True, True),
        "scaling_factor": 1.0,
    }
    is_flat = False
    is_shared = False

    def downsampling(self, config: Mapping[str, Any]) -> int:
        return int((1 << len(config["temperal_downsample"])) * (config.get("patch_size") or 1))

    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["z_dim"])

    def encode(self, model: Any, images: Tensor) -> Tensor:
        return super().encode(model, images.unsqueeze(FRAMES)).squeeze(FRAMES)

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        return super().decode(model, latents.unsqueeze(FRAMES)).squeeze(FRAMES)
