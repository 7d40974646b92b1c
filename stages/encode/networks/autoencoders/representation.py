"""RAE (arXiv 2510.11690): an encoder's tokens are the latents, which a trained decoder decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.encode.networks.autoencoders.family import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Representation(Family):
    """AutoencoderRAE. Its latents are cached as it normalises them, and not scaled."""

    usual: ClassVar[Mapping[str, Any]] = {
        "encoder_hidden_size": 768,
        "encoder_patch_size": 14,
        "encoder_input_size": 224,
        "patch_size": 16,
    }
    has_posterior = False
    is_flat = False

    def downsampling(self, config: Mapping[str, Any]) -> int:
        return int(config["patch_size"])

    def channels(self, config: Mapping[str, Any]) -> int:
        return int(config["encoder_hidden_size"])

    def problem_with(self, config: Mapping[str, Any], side: int) -> str | None:
        grid = config["encoder_input_size"] // config["encoder_patch_size"]
        only = grid * self.downsampling(config)
        return None if side == only else f"the autoencoder is for images of {only} px, got {side}"

    def scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"scaling_factor": 1.0, "shift_factor": 0.0}

    def encode(self, model: Any, images: Tensor) -> Tensor:
        latents: Tensor = model.encode((images + 1) / 2).latent
        return latents

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        return super().decode(model, latents) * 2 - 1
