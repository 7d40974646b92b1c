"""Interpolants of SiT (arXiv 2401.08740): paths from clean latents to noise, and their velocity.

x_t = alpha(t) x + sigma(t) noise has the velocity v = alpha'(t) x + sigma'(t) noise. B images,
C latent channels, h and w the latent's sides. torch is not imported: a configuration is checked
against the names here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import PositiveFloat

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# A number, or that which belongs to the size of a latent.
Shift: TypeAlias = PositiveFloat | Literal["auto"]
# The numbers of a latent whose times are not shifted: SR-DiT's base (arXiv 2512.12386).
UNSHIFTED = 4096
Times = TypeVar("Times", "float", "Tensor")


class Coefficients(NamedTuple):
    """alpha, sigma and their derivatives at a time, each of the time's shape."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


def linear(time: Tensor) -> Coefficients:
    """Linear path: alpha = 1 - t, sigma = t."""
    one = time.new_ones(time.shape)
    return Coefficients(1 - time, time, -one, one)


def cosine(time: Tensor) -> Coefficients:
    """Variance-preserving path: alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    angle = time * (math.pi / 2)
    cos, sin = angle.cos(), angle.sin()
    return Coefficients(cos, sin, -sin * (math.pi / 2), cos * (math.pi / 2))


INTERPOLANTS: dict[str, Callable[[Tensor], Coefficients]] = {"linear": linear, "cosine": cosine}


def interpolate(
    interpolant: str, clean: Tensor, noise: Tensor, time: Tensor
) -> tuple[Tensor, Tensor]:
    """What is noisy and its velocity, such as latents, both [B, ...].

    clean, noise: [B, ...]; time: [B], 0 is clean and 1 is noise.
    """
    at = INTERPOLANTS[interpolant](time.reshape(-1, *[1] * (clean.ndim - 1)))
    noisy = at.alpha * clean + at.sigma * noise
    return noisy, at.alpha_rate * clean + at.sigma_rate * noise


def lognormal_time(interpolant: str, normal: Tensor) -> Tensor:
    """Times [B] whose noise-to-signal ratio is log-normal, from standard normals [B]."""
    ratio = normal.exp()
    if interpolant == "linear":
        return ratio / (1 + ratio)
    return ratio.atan() * (2 / math.pi)


def shifted(time: Times, shift: float) -> Times:
    """Times moved towards noise, if the shift is above 1 (arXiv 2403.03206, eq. 23): 0 and 1 stay.

    time: any shape, 0 is clean and 1 is noise.
    """
    return time if shift == 1 else shift * time / (1 + (shift - 1) * time)


def shift_of(shift: Shift | None, latent: tuple[int, ...]) -> float:
    """A shift as a number, 1 for none. latent: (C, h, w), which decides it if it is `auto`."""
    if shift is None:
        return 1.0
    return math.sqrt(math.prod(latent) / UNSHIFTED) if shift == "auto" else shift
