"""Random numbers as functions of (seed, step): nothing to save, nothing to restore.

Draws are made for the global batch and cut into equal parts, so that a rank's noise depends
on the images it holds and not on the number of ranks. They are drawn on the device: a CPU, and
GPUs of different models, draw different numbers from the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.placement import Placement
from stages.train.objectives import OBJECTIVES
from stages.train.train_settings import TrainSettings


class Stream(IntEnum):
    """Independent sequences; the numbers are part of what makes a run reproducible."""

    POSTERIOR = 0
    NOISE = 1
    TIME = 2
    LABELS = 3
    WEIGHTS = 4
    SAMPLING = 5
    VIEWS = 6
    CLASSES = 7
    ANALYSIS = 8


def seed_for(seed: int, stream: Stream, *numbers: int) -> int:
    """A 63-bit seed for one member of a stream, such as a step; no two members share one."""
    state = np.random.SeedSequence(seed, spawn_key=(stream, *numbers)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def mirrored(settings: TrainSettings, step: int, place: Placement) -> npt.NDArray[np.bool_]:
    """Which images, [B], of a rank's part of a step are read mirrored: each with probability 1/2.

    The highest bits of raw Philox output, which numpy guarantees never to change.
    """
    source = np.random.Philox(seed_for(settings.seed, Stream.VIEWS, step))
    drawn = source.random_raw(settings.batch_size) >> 63 == 1
    return np.split(drawn, place.world)[place.rank]


@dataclass(frozen=True)
class Draws:
    """The randomness of one step for the B images of a rank.

    posterior, noise: normal [B, C, h, w]; time: [B], in the objective's unit; dropped: bool [B],
    the labels that are replaced by none.
    """

    posterior: Tensor
    noise: Tensor
    time: Tensor
    dropped: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [self.posterior, self.noise, self.time, self.dropped]

    def split(self, parts: int) -> list["Draws"]:
        """Those of equal parts of the images."""
        return [Draws(*part) for part in zip(*(t.chunk(parts) for t in self.tensors), strict=True)]


class Draw:
    """Makes the draws of any step, for one rank.

    shape: (C, h, w) of a latent.
    """

    def __init__(self, settings: TrainSettings, shape: tuple[int, ...], place: Placement) -> None:
        self._settings = settings
        self._objective = OBJECTIVES[settings.family](settings)
        self._shape = shape
        self._place = place

    def at(self, step: int) -> Draws:
        """The draws of a step."""
        return Draws(
            posterior=self._cut(torch.randn, self._shape, Stream.POSTERIOR, step),
            noise=self._cut(torch.randn, self._shape, Stream.NOISE, step),
            time=self._objective.times(lambda sample: self._cut(sample, (), Stream.TIME, step)),
            dropped=self._dropped(step),
        )

    def _dropped(self, step: int) -> Tensor:
        probability = self._settings.label_dropping
        dropped = self._cut(torch.rand, (), Stream.LABELS, step) < probability
        if self._settings.legacy_label_dropping:
            dropped |= self._cut(torch.rand, (), Stream.LABELS, step, 1) < probability
        return dropped

    def _cut(
        self, sample: Callable[..., Tensor], shape: tuple[int, ...], stream: Stream, *numbers: int
    ) -> Tensor:
        device = self._place.device
        source = torch.Generator(device).manual_seed(
            seed_for(self._settings.seed, stream, *numbers)
        )
        size = (self._settings.batch_size, *shape)
        drawn = sample(size, generator=source, device=device)
        return drawn.chunk(self._place.world)[self._place.rank]
