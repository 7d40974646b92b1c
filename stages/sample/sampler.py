"""Latents of numbered images from a checkpoint: noise, labels and guidance.

B images, C latent channels, h and w the latent's sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache.errors import RepaCacheError
from stages.sample.settings import SampleSettings
from stages.sample.solvers import SOLVERS
from stages.train.randomness import Stream, seed_for
from stages.train.transformer import Transformer, TransformerConfig


class GuidanceError(RepaCacheError):
    """Guidance asks for a null class that the model was not trained with."""


class Sampler:
    """Draws the latents of numbered images; noise and label depend on the number alone."""

    def __init__(
        self, settings: SampleSettings, model: Transformer, interpolant: str, device: torch.device
    ) -> None:
        self._settings = settings
        self._device = device
        self._interpolant = interpolant
        self._model = model
        self._config = model.config
        if settings.guidance != 1 and not self._config.has_null_class:
            raise GuidanceError(
                f"sample.guidance is {settings.guidance}, but the model was trained without label "
                "dropping and has no null class. Set it to 1, or train with label dropping."
            )

    @torch.inference_mode()
    def latents(self, indices: Sequence[int]) -> Tensor:
        """Scaled latents [B, C, h, w] of the images with these indices, in float64."""
        settings = self._settings
        labels = torch.tensor([index % self._config.classes for index in indices])
        field = GuidedField(self._model, labels.to(self._device), settings)
        return SOLVERS[settings.solver](
            field,
            self._noise(indices, 0),
            settings.steps,
            self._interpolant,
            lambda step: self._noise(indices, step + 1),
        )

    def _noise(self, indices: Sequence[int], draw: int) -> Tensor:
        """Standard normals for one draw of each image, made on the CPU to be the same anywhere."""
        shape = (self._config.channels, self._config.side, self._config.side)
        seed = self._settings.seed
        seeds = (seed_for(seed, Stream.SAMPLING, index, draw) for index in indices)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        # Apple's GPUs have no float64; the state of the solver stays on the CPU there.
        device = "cpu" if self._device.type == "mps" else self._device
        return torch.stack(noise).to(device).double()


class GuidedField:
    """The velocity of a model under classifier-free guidance on an interval of time."""

    def __init__(self, model: Transformer, labels: Tensor, settings: SampleSettings) -> None:
        self._model = model
        self._device = labels.device
        self._labels = labels
        self._null = torch.full_like(labels, model.config.classes)
        self._guidance = settings.guidance
        self._interval = settings.guidance_interval

    def __call__(self, state: Tensor, time: float, step_start: float) -> Tensor:
        """The velocity [B, C, h, w] in float64; only guided steps pay for both classes."""
        low, high = self._interval
        if self._guidance == 1 or not low <= step_start <= high:
            return self._velocity(state, time, self._labels)
        both = self._velocity(state.repeat(2, 1, 1, 1), time, torch.cat([self._labels, self._null]))
        conditional, unconditional = both.chunk(2)
        return unconditional + self._guidance * (conditional - unconditional)

    def _velocity(self, state: Tensor, time: float, labels: Tensor) -> Tensor:
        times = torch.full((len(state),), time, device=self._device)
        inputs = state.float().to(self._device)
        velocity: Tensor = self._model(inputs, times, labels, project=False)[0]
        return velocity.to(state.device).double()


def make_sampled(
    config: TransformerConfig, weights: Mapping[str, Tensor], device: torch.device
) -> Transformer:
    """A model with some weights, without its projectors."""
    model = Transformer(replace(config, features=()))
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("projectors.")})
    return model.eval().requires_grad_(False).to(device)
