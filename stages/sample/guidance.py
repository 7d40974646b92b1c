"""Classifier-free guidance (arXiv 2207.12598) on an interval of time (arXiv 2404.07724).

B images, C latent channels, h and w the latent's sides.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.model.sizes import DIFFUSION_STEPS
from stages.model.transformer import TransformerConfig
from stages.sample.sample_settings import SampleSettings
from stages.sample.solvers.solver import Time


class GuidedField:
    """What a model predicts under classifier-free guidance on an interval of time.

    predict: latents [B, C, h, w] in float32, times [B] and labels [B] to the model's prediction
    [B, C or 2C, h, w]; labels: of the images, [B].
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor, Tensor], Tensor],
        config: TransformerConfig,
        labels: Tensor,
        settings: SampleSettings,
    ) -> None:
        self._predict = predict
        self._labels = labels
        self._null = torch.full_like(labels, config.classes)
        self._guidance = settings.guidance
        self._guided_channels = settings.guided_channels or config.channels
        self._interval = settings.guidance_interval
        # The time of pure noise.
        self._latest = DIFFUSION_STEPS if config.learns_sigma else 1

    def __call__(self, state: Tensor, time: Time, step_start: Time) -> Tensor:
        """The prediction in float64; only images whose step is guided pay for both classes."""
        times = _per_image(state, time)
        guided = self._is_guided(_per_image(state, step_start)).nonzero().flatten()
        predicted = self._evaluate(
            torch.cat([state, state[guided]]),
            torch.cat([times, times[guided]]),
            torch.cat([self._labels, self._null[: len(guided)]]),
        )
        conditional, unconditional = predicted.tensor_split([len(state)])
        if len(guided):
            # What comes after a latent's channels, DiT's variance, is the conditional one's.
            part = slice(self._guided_channels)
            both = conditional[guided, part], unconditional[:, part]
            conditional[guided, part] = both[1] + self._guidance * (both[0] - both[1])
        return conditional

    def _is_guided(self, starts: Tensor) -> Tensor:
        low, high = self._interval
        level = starts / self._latest
        return (level >= low) & (level <= high) & (self._guidance != 1)

    def _evaluate(self, states: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        inputs = states.float().to(labels.device)
        predicted = self._predict(inputs, times.float().to(labels.device), labels)
        return predicted.to(states.device).double()


def _per_image(state: Tensor, time: Time) -> Tensor:
    """A time for each image, [B], in float64."""
    return torch.as_tensor(time, dtype=torch.float64).expand(len(state))
