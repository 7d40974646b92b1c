"""Features of a set of images, by one pass that several processes share.

B images, S their side in px, D features.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.order import evenly, permutation
from cache.reader import ColumnReader
from cache.recipe import fingerprint
from stages.encode.building.columns import Maker
from stages.encode.images.crop_batches import Crops
from stages.evaluate.image_sets import ImageSet
from stages.evaluate.metrics import Gaussian, RunningGaussian
from stages.placement import Placement
from stages.progress import progress

# Of the images that are in a part.
PART_SEED = 0
# Of a cache, read at once.
CACHED_ROWS = 64
# What a recipe says of how features are computed and kept, rather than of what they are.
STORED_BY = ("storage", "compute")


class Network(Protocol):
    """What makes features.

    name: of the network; features: names of what it makes; identity: which changes with what it
    makes; weights_sha256: of its weights.
    """

    name: str
    features: tuple[str, ...]
    weights_sha256: str
    identity: str

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """Images, uint8 [B, 3, S, S], to features [B, D] by name, float32 on the CPU."""


@dataclass(frozen=True)
class Wanted:
    """What is needed of the features of a set of images.

    gaussians: names of those whose Gaussian is fitted; parts: names of those of which Gaussians
    of so many random images are fitted too; rows: names of those that are kept, with the number
    of images, evenly spread over the set, or None for all.
    """

    gaussians: frozenset[str] = frozenset()
    rows: Mapping[str, int | None] = field(default_factory=dict)
    parts: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.gaussians or self.rows or self.parts)

    @property
    def names(self) -> frozenset[str]:
        """All features that are needed."""
        return self.gaussians.union(self.rows, self.parts)


@dataclass(frozen=True)
class Measured:
    """What was found of a set of images.

    gaussians: by name; rows: features [images, D] by name, in the order of the images; parts:
    Gaussians of so many of the images, by name and number.
    """

    gaussians: Mapping[str, Gaussian]
    rows: Mapping[str, Tensor]
    parts: Mapping[tuple[str, int], Gaussian] = field(default_factory=dict)


# The features of all images, or of so many random ones.
Share = tuple[str, int | None]


class Sums:
    """The sums of features of a set of images, whole and in parts.

    images: their number; shares: what is summed.
    """

    def __init__(self, images: int, shares: Iterable[Share]) -> None:
        self.running = {share: RunningGaussian() for share in shares}
        sizes = {size for _, size in self.running if size is not None}
        self._drawn = {size: _drawn(images, size) for size in sizes}

    def add(self, start: int, features: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Add features [N, D] of neighbouring images. start: the place of the first."""
        for (name, size), running in self.running.items():
            values = features[name]
            if size is not None:
                values = values[self._drawn[size][start : start + len(values)]]
            running.add(values)

    def finish(self) -> dict[Share, RunningGaussian]:
        """The sums of all that was added."""
        for running in self.running.values():
            running.finish()
        return self.running


def _drawn(images: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of a number of images are in a random part of so many."""
    drawn = np.zeros(images, np.bool_)
    drawn[permutation(images, PART_SEED)[:count]] = True
    return drawn


def measure(
    title: str,
    images: ImageSet,
    networks: Sequence[Network],
    wanted: Wanted,
    batch: int,
    place: Placement,
) -> Measured:
    """Run networks over images once. Only rank 0 gets the result, others an empty one.

    title: of the images, for the progress.
    """
    networks = [network for network in networks if wanted.names.intersection(network.features)]
    bounds = np.linspace(0, len(images), place.world + 1).astype(int).tolist()
    rows = range(bounds[place.rank], bounds[place.rank + 1])
    kept = {name: _evenly(len(images), count) for name, count in wanted.rows.items()}
    sums = Sums(len(images), _shares(wanted))
    parts: dict[str, list[Tensor]] = {name: [] for name in kept}
    start = rows.start
    with progress(f"features of {title}", len(rows), "images", quiet=not place.is_main) as advance:
        for pixels in images.batches(rows, batch):
            features: dict[str, Tensor] = {}
            for network in networks:
                features |= network(pixels)
            sums.add(start, {name: values.numpy() for name, values in features.items()})
            for name, part in parts.items():
                is_kept = torch.from_numpy(kept[name][start : start + len(pixels)])
                part.append(features[name][is_kept])
            start += len(pixels)
            advance(len(pixels), "")
    # A process may have no image, and with that nothing of any width.
    rows_kept = {name: torch.cat(part) if part else torch.empty(0) for name, part in parts.items()}
    return _merged(sums.finish(), rows_kept, place)


def _shares(wanted: Wanted) -> Iterator[Share]:
    yield from ((name, None) for name in wanted.gaussians)
    for name, sizes in wanted.parts.items():
        yield from ((name, size) for size in sizes)


def _evenly(images: int, count: int | None) -> npt.NDArray[np.bool_]:
    """Which of a number of images are kept, if so many are to be."""
    kept = np.zeros(images, np.bool_)
    kept[evenly(np.arange(images), count or images)] = True
    return kept


def _merged(
    sums: Mapping[Share, RunningGaussian], rows: Mapping[str, Tensor], place: Placement
) -> Measured:
    """What all processes have found, on rank 0."""
    found: list[Any] = [(sums, rows)]
    if place.world > 1:
        gathered: list[Any] | None = [None] * place.world if place.is_main else None
        torch.distributed.gather_object((sums, rows), gathered)
        if gathered is None:
            return Measured({}, {})
        found = gathered
    whole: dict[Share, RunningGaussian] = {share: RunningGaussian() for share in sums}
    for part, _ in found:
        for share, running in part.items():
            whole[share].merge(running)
    return Measured(
        {name: running.gaussian() for (name, size), running in whole.items() if size is None},
        {name: torch.cat([part[name] for _, part in found]) for name in rows},
        {(name, n): running.gaussian() for (name, n), running in whole.items() if n is not None},
    )


class EncoderVectors:
    """One vector per image from an encoder: its class token, or the mean of its tokens.

    column: where the cache has them; recipe: by which it has to have been filled.
    """

    def __init__(self, encoder: str, maker: Maker) -> None:
        self.name = f"fd_{encoder}"
        self.features: tuple[str, ...] = (self.name,)
        self.column, self.recipe = maker.column, maker.recipe
        self.weights_sha256 = str(maker.recipe["weights_sha256"])
        self._maker = maker
        # How tokens are computed and stored does not change it.
        decisive = {k: v for k, v in maker.recipe.items() if k not in STORED_BY}
        self.identity = fingerprint(decisive)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The vectors of images, by the name of their Frechet distance."""
        outputs = self._maker.network(Crops.of(images))
        vectors = outputs.get("class_token", outputs["tokens"].mean(1))
        return {self.name: vectors.float().cpu()}


def measure_cached(
    name: str, reader: ColumnReader, sizes: Iterable[int], place: Placement
) -> Measured:
    """What the cache alone tells of an encoder's vectors of all its images.

    sizes: of the parts of which Gaussians are fitted too.
    """
    rows, title = np.flatnonzero(reader.valid), f"tokens of {reader.column.title}"
    sums = Sums(len(rows), [(name, None), *((name, size) for size in sizes)])
    with progress(title, len(rows), "images", quiet=not place.is_main) as advance:
        for start in range(0, len(rows), CACHED_ROWS):
            part = rows[start : start + CACHED_ROWS]
            sums.add(start, {name: reader.vectors(part)})
            advance(len(part), "")
    # Every process has read all rows.
    return _merged(sums.finish(), {}, Placement(place.device))
