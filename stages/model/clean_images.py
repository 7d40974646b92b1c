"""What a model that predicts clean images is asked: JiT (arXiv 2511.13720).

Time 1 is clean and 0 is noise. B images, S their side in px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of the largest images whose noise is not scaled.
PLAIN_SIDE = 256
# Near the end, velocities are divided by no less.
LEAST_TIME_LEFT = 0.05


def noise_scale_of(scale: float | str, side: int) -> float:
    """What noise is multiplied by, for images of `side` px if it is `auto`."""
    return max(1.0, side / PLAIN_SIDE) if isinstance(scale, str) else scale


def velocity_to(clean: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """The velocity that leads from noisy images to clean ones, all [B, 3, S, S]. time: [B]."""
    left = (1 - time).clamp(min=LEAST_TIME_LEFT)
    return (clean - noisy) / left.reshape(-1, *[1] * (clean.ndim - 1))
