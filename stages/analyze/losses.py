"""Denoising losses by level of noise: of the images of a cache, best of those not trained on.

N images, B of a batch, L levels of noise.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.analyze.noised import Noised, NoisedModel
from stages.analyze.subject import Subject
from stages.model.sizes import LATENTS
from stages.model.streams import predictions
from stages.train.terms.seen import Seen, Streamed


@dataclass(frozen=True)
class LevelLosses:
    """Denoising losses of each image at a level of noise, float64 [N]."""

    level: float
    losses: npt.NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Over images."""
        return float(self.losses.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean; runs that are judged by the same images share most."""
        return float(self.losses.std(ddof=1) / len(self.losses) ** 0.5)


@dataclass(frozen=True)
class LossScores:
    """Denoising losses of a subject, by level of noise."""

    subject: Subject
    levels: tuple[LevelLosses, ...]


@torch.inference_mode()
def measure_losses(subject: Subject, device: torch.device) -> LossScores:
    """The denoising loss that training has, for the same noises of the same images in every run."""
    model, found = NoisedModel(subject, device), []
    for level in subject.options.levels:
        losses = torch.cat([_losses(model, noised) for noised in model.batches(level, "losses")])
        found.append(LevelLosses(level, losses.double().cpu().numpy()))
    return LossScores(subject, tuple(found))


def _losses(model: NoisedModel, noised: Noised) -> Tensor:
    """Of some images, [B]."""
    channels, class_token = noised.inputs
    output = model.model(channels, noised.time, noised.given, (), class_token)
    found = predictions(output, model.model.config)[LATENTS]
    predicted = model.objective.compared(found, noised.streams[LATENTS].noisy, noised.time)
    streams = {LATENTS: Streamed(*noised.streams[LATENTS], predicted)}
    seen = Seen({}, {}, noised.time, model.objective.level(noised.time), streams, {})
    return model.objective.losses(seen)[0]
