"""What runs read of the cache, and the hours of encoders that they would have needed without it.

Latents do not count: published code computes them before training, too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cache.errors import RepaCacheError
from cache.layout import FEATURES, FLIPPED
from cache.metadata import column_names, read_column
from cache.rows import count_rows
from pipeline.config import Config
from stages.encode.building.build_times import devices, seconds_per_image
from stages.latents import main_array
from stages.train.cached_data import encoder_of, stored_arrays
from stages.train.terms.run_terms import RunTerms


@dataclass(frozen=True)
class ReadColumn:
    """A column that a run read.

    images: how many, each as often as it was read; bytes: of them; network: the column whose
    network would have run instead, which for components is that of the tokens they are made of.
    """

    name: str
    images: int
    bytes: int
    network: str


@dataclass(frozen=True)
class Read:
    """What a run read of the cache.

    saved: seconds that encoders would have taken for as many images, by their columns, as far as
    builds measured it; unmeasured: columns of which they did not.
    """

    columns: tuple[ReadColumn, ...] = ()
    saved: dict[str, float] = field(default_factory=dict)
    unmeasured: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all columns."""
        return sum(column.bytes for column in self.columns)

    @property
    def saved_seconds(self) -> float:
        """Of all encoders."""
        return sum(self.saved.values())


def read_by(config: Config, steps: int) -> Read:
    """What a run has read after so many steps; nothing of a cache that is gone."""
    try:
        columns = list(_columns(config, steps))
        # Its tokens and their components take an encoder once.
        encoded: dict[str, int] = {}
        for one in columns:
            if one.name.startswith(FEATURES):
                encoded[one.network] = max(one.images, encoded.get(one.network, 0))
        taken = {name: seconds_per_image(config.cache.path, name) for name in encoded}
    except RepaCacheError:
        return Read()
    return Read(
        tuple(columns),
        {name: images * (taken[name] or 0.0) for name, images in encoded.items()},
        tuple(name for name, seconds in taken.items() if seconds is None),
    )


def _columns(config: Config, steps: int) -> Iterator[ReadColumn]:
    train, path = config.train, config.cache.path
    rows = count_rows(path)
    latents = read_column(path, config.tensors.latents, rows)
    images = steps * train.batch_size
    row_bytes = main_array(latents).row_bytes
    yield ReadColumn(latents.name, images, images * row_bytes, latents.name)
    # By column and array, as several terms may read the same.
    read: dict[str, dict[str, int]] = {}
    for begin, end in pairwise(_stretches(config, steps)):
        for name in RunTerms.of(train).at(begin).arrays:
            column = read_column(path, FEATURES + encoder_of(name), rows)
            ends = read.setdefault(column.name, {})
            ends |= dict.fromkeys(stored_arrays(name, column), end)
    for name, ends in read.items():
        column = read_column(path, name, rows)
        sizes = (end * column.array(array).row_bytes for array, end in ends.items())
        images = max(ends.values()) * train.batch_size
        network = str(column.recipe.get("source", name))
        yield ReadColumn(name, images, train.batch_size * sum(sizes), network)


def _stretches(config: Config, steps: int) -> list[int]:
    """The steps between which the terms of a run are the same, first and last among them."""
    ends = {term.until for term in config.train.align if term.until is not None}
    return sorted({0, steps, *(end for end in ends if end < steps)})


@dataclass(frozen=True)
class Savings:
    """What a cache saved several runs. devices: that its encoders were measured on.

    online_seconds: of encoders in every step of all runs; build_seconds: for all images once.
    """

    online_seconds: float
    build_seconds: float
    unmeasured: tuple[str, ...]
    devices: tuple[str, ...]

    @property
    def saved_seconds(self) -> float:
        """All in all, less than nothing if the runs were too few."""
        return self.online_seconds - self.build_seconds


def savings(config: Config, reads: Sequence[Read]) -> Savings:
    """What the cache of a configuration saved the runs that read so much of it."""
    path = config.cache.path
    names = sorted({name for read in reads for name in read.saved})
    try:
        rows, there = count_rows(path), column_names(path)
        built = [view for name in names for view in (name, name + FLIPPED) if view in there]
        build = sum(rows * (seconds_per_image(path, name) or 0.0) for name in built)
        known = tuple(sorted({device for name in built for device in devices(path, name)}))
    except RepaCacheError:
        build, known = 0.0, ()
    return Savings(
        online_seconds=sum(read.saved_seconds for read in reads),
        build_seconds=build,
        unmeasured=tuple(sorted({name for read in reads for name in read.unmeasured})),
        devices=known,
    )
