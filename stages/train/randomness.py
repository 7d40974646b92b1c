"""Random numbers as functions of (seed, step): nothing to save, nothing to restore.

Draws are made for the global batch and cut into equal parts, so that a rank's noise depends
on the images it holds and not on the number of ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.placement import Placement
from stages.train.objectives import lognormal_time
from stages.train.settings import TrainSettings


class Stream(IntEnum):
    """Independent sequences; the numbers are part of what makes a run reproducible."""

    POSTERIOR = 0
    NOISE = 1
    TIME = 2
    LABELS = 3
    WEIGHTS = 4
    SAMPLING = 5
    VIEWS = 6


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

    posterior, noise: normal [B, C, h, w]; time: [B] in [0, 1]; dropped: bool [B].
    """

    posterior: Tensor
    noise: Tensor
    time: Tensor
    dropped: Tensor


class Draw:
    """Makes the draws of any step, for one rank.

    shape: (C, h, w) of a latent.
    """

    def __init__(self, settings: TrainSettings, shape: tuple[int, ...], place: Placement) -> None:
        self._settings = settings
        self._shape = shape
        self._place = place

    def at(self, step: int) -> Draws:
        """The draws of a step."""
        return Draws(
            posterior=self._cut(torch.randn, step, Stream.POSTERIOR, self._shape),
            noise=self._cut(torch.randn, step, Stream.NOISE, self._shape),
            time=self._time(step),
            dropped=self._cut(torch.rand, step, Stream.LABELS, ()) < self._settings.label_dropping,
        )

    def _time(self, step: int) -> Tensor:
        if self._settings.times == "uniform":
            return self._cut(torch.rand, step, Stream.TIME, ())
        return lognormal_time(
            self._settings.interpolant, self._cut(torch.randn, step, Stream.TIME, ())
        )

    def _cut(
        self, sample: Callable[..., Tensor], step: int, stream: Stream, shape: tuple[int, ...]
    ) -> Tensor:
        device = self._place.device
        source = torch.Generator(device).manual_seed(seed_for(self._settings.seed, stream, step))
        size = (self._settings.batch_size, *shape)
        drawn = sample(size, generator=source, device=device)
        return drawn.chunk(self._place.world)[self._place.rank]
