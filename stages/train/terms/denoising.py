"""Denoising: what the transformer sees of an image, and what its prediction costs."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import PositiveFloat

from stages.model.clean_images import noise_scale_of, velocity_to
from stages.model.interpolants import Shift, interpolate, lognormal_time, shift_of, shifted
from stages.model.sizes import DIFFUSION_STEPS, LATENTS
from stages.setting_types import OneOf
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Seen

    # torch.rand or torch.randn to the draws of the images of a rank, [B].
    DrawTimes = Callable[[Callable[..., Tensor]], Tensor]


class Objective(Term):
    """The term that every run has: it decides times, the model's input and its target."""

    @abstractmethod
    def times(self, draw: DrawTimes, latent: tuple[int, ...]) -> Tensor:
        """Times for the images of a step, [B], in the unit that the model takes.

        latent: the shape (C, h, w) of what is made noisy.
        """

    @abstractmethod
    def level(self, time: Tensor) -> Tensor:
        """Times [B] as levels of noise from 0, clean, to 1, noise."""

    @abstractmethod
    def time(self, level: Tensor) -> Tensor:
        """Levels of noise [B], from 0 to 1, as times: the nearest there are."""

    @abstractmethod
    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The model's input, and what its prediction is to be. All but time: [B, C, h, w]."""

    def compared(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:  # noqa: ARG002
        """What of a prediction is compared with its target; noisy: what it was made of."""
        return prediction


class Velocity(Objective):
    """SiT: the velocity of an interpolant (arXiv 2401.08740, eq. 5)."""

    kind: Literal["velocity"] = "velocity"
    """Which loss it is."""
    interpolant: Annotated[str, OneOf("stages.model.interpolants:INTERPOLANTS")] = "linear"
    """The path from data to noise."""
    distribution: Literal["uniform", "lognormal"] = "uniform"
    """Of times."""
    shift: Shift | None = None
    """Of times towards noise."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("denoising",)

    def times(self, draw: DrawTimes, latent: tuple[int, ...]) -> Tensor:
        import torch

        if self.distribution == "uniform":
            time = draw(torch.rand)
        else:
            time = lognormal_time(self.interpolant, draw(torch.randn))
        return shifted(time, shift_of(self.shift, latent))

    def level(self, time: Tensor) -> Tensor:
        return time

    def time(self, level: Tensor) -> Tensor:
        return level

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        return interpolate(self.interpolant, clean, noise, time)

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        latents = seen.streams[LATENTS]
        return [squared_error(latents.prediction, latents.target)]


class CleanImage(Objective):
    """JiT: the clean image, compared as the velocity that it gives (arXiv 2511.13720).

    In its code's direction: time 1 is clean and 0 is noise, and velocities lead to images.
    """

    kind: Literal["clean-image"] = "clean-image"
    """Which loss it is."""
    noise_scale: PositiveFloat | Literal["auto"] = "auto"
    """What noise is multiplied by; `auto` is the side of an image over 256, and 1 below that."""
    time_mean: float = -0.8
    """Of the normals whose sigmoid times are."""
    time_deviation: PositiveFloat = 0.8
    """Of these."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("denoising",)

    def times(self, draw: DrawTimes, latent: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        import torch

        return (draw(torch.randn) * self.time_deviation + self.time_mean).sigmoid()

    def level(self, time: Tensor) -> Tensor:
        return 1 - time

    def time(self, level: Tensor) -> Tensor:
        return 1 - level

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        at = time[:, None, None, None]
        noisy = at * clean + (1 - at) * noise * noise_scale_of(self.noise_scale, clean.shape[-1])
        return noisy, velocity_to(clean, noisy, time)

    def compared(self, prediction: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        return velocity_to(prediction.float(), noisy, time)

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        latents = seen.streams[LATENTS]
        return [squared_error(latents.prediction, latents.target)]


class NoiseAndVariance(Objective):
    """DiT: the noise, and the variance between its bounds (improved DDPM, section 3.1).

    The bound moves the variance only: the mean enters it without gradient.
    """

    kind: Literal["noise-and-variance"] = "noise-and-variance"
    """Which loss it is."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("denoising", "bound")

    def times(self, draw: DrawTimes, latent: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        import torch

        return (draw(torch.rand) * DIFFUSION_STEPS).long()

    def level(self, time: Tensor) -> Tensor:
        return time / DIFFUSION_STEPS

    def time(self, level: Tensor) -> Tensor:
        return (level * DIFFUSION_STEPS).round().long().clamp(max=DIFFUSION_STEPS - 1)

    def pose(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        from stages.model.diffusion import diffuse

        return diffuse(clean, noise, time), noise

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        from stages.model.diffusion import variational_bound

        latents = seen.streams[LATENTS]
        mean, fraction = latents.prediction.float().chunk(2, dim=1)
        bound = variational_bound(latents.clean, latents.noisy, seen.time, mean.detach(), fraction)
        return [squared_error(mean, latents.target), bound]


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, [B], in float32."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)
