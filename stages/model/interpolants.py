"""Interpolants of SiT (arXiv 2401.08740): paths from clean latents to noise, and their velocity.

x_t = alpha(t) x + sigma(t) noise has the velocity v = alpha'(t) x + sigma'(t) noise. B images,
C latent channels, h and w the latent's sides. torch is not imported: a configuration is checked
against the names here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


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
