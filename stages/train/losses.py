"""The losses of a batch of cached tensors, given the randomness of its step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.train.alignment import ALIGNMENTS
from stages.train.batches import Batch
from stages.train.cached_data import LatentScaling
from stages.train.objectives import OBJECTIVES
from stages.train.randomness import Draws
from stages.train.train_settings import TrainSettings

# Noisy latents, times and labels to the prediction and the projected tokens.
Model = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Losses:
    """terms: of each term for each image, float32 [terms, B]; total: what is minimised."""

    terms: Tensor
    total: Tensor


class TrainingLoss:
    """The denoising loss plus the weighted mean of the alignment losses (REPA, eq. 9).

    encoders: those to align with; scaling: of the cached latents; null_class: the label of
    dropped labels. terms: the names of the losses, those of alignment after the others.
    """

    def __init__(
        self,
        settings: TrainSettings,
        encoders: Sequence[str],
        scaling: LatentScaling,
        null_class: int,
    ) -> None:
        self.objective = OBJECTIVES[settings.family](settings)
        self.terms = (*self.objective.terms, *(f"alignment/{encoder}" for encoder in encoders))
        self.is_aligned = len(encoders) > 0
        self._align = ALIGNMENTS[settings.alignment](settings)
        self._scaling = scaling
        self._null_class = null_class
        share = settings.weight / max(len(encoders), 1)
        # Of each term in the total.
        self._weights = [1.0] * len(self.objective.terms) + [
            share * settings.encoder_weights.get(encoder, 1.0) for encoder in encoders
        ]

    def __call__(self, model: Model, batch: Batch, draws: Draws) -> Losses:
        """The losses of a batch, with gradients."""
        clean = self._scaling.sample(batch.moments, draws.posterior)
        noisy, denoising = self.objective.pose(clean, draws.noise, draws.time)
        labels = batch.labels.masked_fill(draws.dropped, self._null_class)
        predicted, projected = model(noisy, draws.time, labels)
        alignment = [self._align(*pair) for pair in zip(projected, batch.tokens, strict=True)]
        terms = torch.stack(denoising(predicted) + alignment)
        total = sum(weight * term.mean() for weight, term in zip(self._weights, terms, strict=True))
        return Losses(terms, total)
