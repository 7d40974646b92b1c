"""One step's losses, from a batch of cached tensors and the step's randomness."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train.alignment import ALIGNMENTS
from stages.train.batches import Batch, LatentScaling
from stages.train.objectives import interpolate, velocity_loss
from stages.train.randomness import Draws
from stages.train.settings import TrainSettings

# Noisy latents, times and labels to the velocity and the projected tokens.
Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Losses:
    """denoising: of each image, [B]; alignment: a scalar per encoder; total: what is minimised."""

    denoising: Tensor
    alignment: list[Tensor]
    total: Tensor


@dataclass(frozen=True)
class Objective:
    """The denoising loss plus the weighted mean of the alignment losses (REPA, eq. 9).

    scaling: of the cached latents; null_class: the label of dropped labels.
    """

    settings: TrainSettings
    scaling: LatentScaling
    null_class: int

    def __call__(self, model: Model, batch: Batch, draws: Draws) -> Losses:
        """The losses of a batch, with gradients."""
        settings = self.settings
        clean = self.scaling.sample(batch.moments, draws.posterior)
        noisy, velocity = interpolate(settings.interpolant, clean, draws.noise, draws.time)
        labels = batch.labels.masked_fill(draws.dropped, self.null_class)
        predicted, projected = model(noisy, draws.time, labels)
        denoising = velocity_loss(predicted, velocity)
        align = ALIGNMENTS[settings.alignment]
        alignment = [align(*pair) for pair in zip(projected, batch.tokens, strict=True)]
        total = denoising.mean()
        if alignment:
            total = total + settings.weight * torch.stack(alignment).mean()
        return Losses(denoising, alignment, total)
