"""Denoising objectives: what the transformer sees of an image, and what its prediction costs.

To add one, write a class with these methods and name it in `OBJECTIVES`. B images, C latent
channels, h and w the latent's sides.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from stages.model.diffusion import diffuse, variational_bound
from stages.model.interpolants import interpolate, lognormal_time
from stages.train.train_settings import DIFFUSION_STEPS, TrainSettings

# torch.rand or torch.randn to the draws of the images of a rank, [B].
DrawTimes = Callable[[Callable[..., Tensor]], Tensor]
# The model's prediction, [B, C or 2C, h, w], to the losses of each term, float32 [B].
Losses = Callable[[Tensor], list[Tensor]]


class Objective(Protocol):
    """A denoising objective.

    terms: the names of its losses, whose sum is minimised; learns_sigma: whether the model
    predicts a variance beside each channel.
    """

    terms: tuple[str, ...]
    learns_sigma: bool

    def __init__(self, settings: TrainSettings) -> None: ...

    def times(self, draw: DrawTimes) -> Tensor:
        """Times for the images of a step, [B], in the unit that the model takes."""

    def level(self, time: Tensor) -> Tensor:
        """Times [B] as levels of noise from 0, clean, to 1, noise."""

    def time(self, level: Tensor) -> Tensor:
        """Levels of noise [B], from 0 to 1, as times: the nearest there are."""

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Losses]:
        """The model's input, and what its prediction costs. clean, noise, input: [B, C, h, w]."""


class VelocityMatching:
    """SiT: the velocity of an interpolant (arXiv 2401.08740, eq. 5)."""

    terms: tuple[str, ...] = ("denoising",)
    learns_sigma: bool = False

    def __init__(self, settings: TrainSettings) -> None:
        self._interpolant = settings.interpolant
        self._distribution = settings.times

    def times(self, draw: DrawTimes) -> Tensor:
        if self._distribution == "uniform":
            return draw(torch.rand)
        return lognormal_time(self._interpolant, draw(torch.randn))

    def level(self, time: Tensor) -> Tensor:
        return time

    def time(self, level: Tensor) -> Tensor:
        return level

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Losses]:
        noisy, velocity = interpolate(self._interpolant, clean, noise, time)
        return noisy, lambda predicted: [_squared_error(predicted, velocity)]


class NoiseAndVariance:
    """DiT: the noise, and the variance between its bounds (improved DDPM, section 3.1).

    The bound moves the variance only: the mean enters it without gradient.
    """

    terms: tuple[str, ...] = ("denoising", "bound")
    learns_sigma: bool = True

    def __init__(self, settings: TrainSettings) -> None:
        pass

    def times(self, draw: DrawTimes) -> Tensor:
        return (draw(torch.rand) * DIFFUSION_STEPS).long()

    def level(self, time: Tensor) -> Tensor:
        return time / DIFFUSION_STEPS

    def time(self, level: Tensor) -> Tensor:
        return (level * DIFFUSION_STEPS).round().long().clamp(max=DIFFUSION_STEPS - 1)

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Losses]:
        noisy = diffuse(clean, noise, time)

        def losses(predicted: Tensor) -> list[Tensor]:
            mean, fraction = predicted.float().chunk(2, dim=1)
            bound = variational_bound(clean, noisy, time, mean.detach(), fraction)
            return [_squared_error(mean, noise), bound]

        return noisy, losses


def _squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, [B], in float32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


# The objective of each family of models.
OBJECTIVES: dict[str, type[Objective]] = {"SiT": VelocityMatching, "DiT": NoiseAndVariance}
