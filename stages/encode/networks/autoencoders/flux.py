"""FLUX.2's autoencoder: cells of 2 x 2 become channels, and a batch norm scales them.

B images, c channels of the network, C = 4 c latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from stages.encode.networks.autoencoders.family import halvings
from stages.encode.networks.autoencoders.kl import Variational

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

CELL = 2


class Folded(Variational):
    """AutoencoderKLFlux2. Its latents are cached as its batch norm makes them, and not scaled."""

    usual: ClassVar[Mapping[str, Any]] = {
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 32,
    }

    def downsampling(self, config: Mapping[str, Any]) -> int:
        return CELL * halvings(config["block_out_channels"])

    def channels(self, config: Mapping[str, Any]) -> int:
        return CELL**2 * super().channels(config)

    def scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"scaling_factor": 1.0, "shift_factor": 0.0}

    def encode(self, model: Any, images: Tensor) -> Tensor:
        import torch

        mean, log_variance = map(_folded, super().encode(model, images).chunk(2, dim=1))
        shift, deviation = _norm(model)
        return torch.cat([(mean - shift) / deviation, log_variance - 2 * deviation.log()], dim=1)

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        shift, deviation = _norm(model)
        return super().decode(model, _unfolded(latents * deviation + shift))


def _norm(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [C, 1, 1], of the batch norm."""
    norm = model.bn
    return (
        norm.running_mean[:, None, None],
        (norm.running_var + model.config.batch_norm_eps).sqrt()[:, None, None],
    )


def _folded(values: Tensor) -> Tensor:
    """[B, c, 2h, 2w] as [B, C, h, w]: of a channel's cell, rows follow each other."""
    cells = values.unflatten(3, (-1, CELL)).unflatten(2, (-1, CELL))
    # [B, c, h, 2, w, 2] to [B, c, 2, 2, h, w].
    folded: Tensor = cells.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    return folded


def _unfolded(values: Tensor) -> Tensor:
    """The inverse."""
    cells = values.unflatten(1, (-1, CELL, CELL)).permute(0, 1, 4, 2, 5, 3)
    # [B, c, h, 2, w, 2] to [B, c, 2h, 2w].
    unfolded: Tensor = cells.flatten(4, 5).flatten(2, 3)
    return unfolded
