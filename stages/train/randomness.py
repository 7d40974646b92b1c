"""Random numbers as functions of (seed, step, name): nothing to save, nothing to restore.

Draws are made for the global batch and cut into equal parts, so that a rank's noise depends
on the images it holds and not on the number of ranks. They are drawn on the device: a CPU, and
GPUs of different models, draw different numbers from the same seed.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.placement import Placement
from stages.train.terms.run_terms import objective_of
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
    CAPTIONS = 9
    DROPOUT = 10


# Behind those that have a number, each name has a stream of its own.
FIRST_NAMED = 1 << 32


def stream_named(name: str) -> int:
    """The stream of its own that a name has."""
    return FIRST_NAMED + crc32(name.encode())


def seed_for(seed: int, stream: int, *numbers: int) -> int:
    """A 63-bit seed for one member of a stream, such as a step; no two members share one."""
    state = np.random.SeedSequence(seed, spawn_key=(stream, *numbers)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def mirrored(seed: int, batch_size: int, step: int, place: Placement) -> npt.NDArray[np.bool_]:
    """Which images, [B], of a rank's part of a step are read mirrored: each with probability 1/2.

    The highest bits of what is drawn.
    """
    is_mirrored: npt.NDArray[np.bool_] = (
        drawn_numbers(seed, Stream.VIEWS, batch_size, step, place) >> 63 == 1
    )
    return is_mirrored


def drawn_numbers(
    seed: int, stream: Stream, batch_size: int, step: int, place: Placement
) -> npt.NDArray[np.uint64]:
    """A whole number for each image of a rank's part of a step, [B].

    Raw Philox output, which numpy guarantees never to change.
    """
    drawn = np.random.Philox(seed_for(seed, stream, step)).random_raw(batch_size)
    return np.split(drawn, place.world)[place.rank]


def draw(
    size: tuple[int, ...], seed: int, place: Placement, sample: Callable[..., Tensor] = torch.randn
) -> Tensor:
    """A rank's part, [B, ...], of what a seed gives for the images of all ranks.

    size: of what is drawn for all of them; sample: how, by default standard normals.
    """
    source = torch.Generator(place.device).manual_seed(seed)
    drawn = sample(size, generator=source, device=place.device)
    return drawn.chunk(place.world)[place.rank]


class Randomness:
    """What is drawn for the B images of a rank at any step, by name.

    latent: (C, h, w); named: further standard normals that terms ask for, and their shape for an
    image, each from a stream of its own.
    """

    def __init__(
        self,
        settings: TrainSettings,
        latent: tuple[int, ...],
        place: Placement,
        named: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._settings = settings
        self._objective = objective_of(settings)
        self._latent = latent
        self._place = place
        self._named = named

    def at(self, step: int) -> dict[str, Tensor]:
        """The draws of a step.

        posterior, noise: normal [B, C, h, w]; time: [B], in the objective's unit; dropped: bool
        [B], the labels that are replaced by none.
        """
        drawn = {
            "posterior": self._cut(torch.randn, self._latent, Stream.POSTERIOR, step),
            "noise": self._cut(torch.randn, self._latent, Stream.NOISE, step),
            "time": self._objective.times(
                lambda sample: self._cut(sample, (), Stream.TIME, step), self._latent
            ),
            "dropped": self._dropped(step),
        }
        for name, shape in self._named.items():
            drawn[name] = self._cut(torch.randn, shape, stream_named(name), step)
        return drawn

    def _dropped(self, step: int) -> Tensor:
        probability = self._settings.label_dropping
        dropped = self._cut(torch.rand, (), Stream.LABELS, step) < probability
        if self._settings.legacy_label_dropping:
            dropped |= self._cut(torch.rand, (), Stream.LABELS, step, 1) < probability
        return dropped

    def _cut(
        self, sample: Callable[..., Tensor], shape: tuple[int, ...], stream: int, *numbers: int
    ) -> Tensor:
        """A rank's part of what is drawn for all images of a step, [B, *shape]."""
        size = (self._settings.batch_size, *shape)
        return draw(size, seed_for(self._settings.seed, stream, *numbers), self._place, sample)
