"""What a model is told of the images that it draws, by their numbers."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from stages.model.conditions import Condition
from stages.sample.sample_settings import SampleSettings
from stages.train.randomness import Stream, seed_for

# The numbers of B images to what their model is told of them, and what would tell it nothing.
Told: TypeAlias = Callable[[Sequence[int]], tuple[Condition, Condition]]


def by_label(settings: SampleSettings, classes: int) -> Told:
    """Tells their classes."""

    def told(indices: Sequence[int]) -> tuple[Condition, Condition]:
        labels = torch.tensor(labels_of(settings, indices, classes))
        return labels, torch.full_like(labels, classes)

    return told


def labels_of(settings: SampleSettings, indices: Sequence[int], classes: int) -> list[int]:
    """The labels of the images with these indices."""
    if settings.labels == "balanced":
        return [index % classes for index in indices]
    # Over 63 bits, the remainder is as good as uniform.
    return [seed_for(settings.seed, Stream.CLASSES, index) % classes for index in indices]
