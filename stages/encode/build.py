"""Stage one: from a data set to finished columns, making only what is missing."""

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cache import ledger
from cache.errors import RepaCacheError, RowsChangedError, StaleCacheError
from cache.layout import (
    ArraySpec,
    Column,
    check_recipe,
    create_column,
    has_column,
    read_column,
    root_attributes,
)
from cache.recipe import differences
from cache.rows import RowTable, check_same_rows, content_hash, create_cache, read_rows
from cache.writer import write_shards
from stages.encode.columns import Maker, load_makers
from stages.encode.images import Pixels, centre_crop, decode
from stages.encode.settings import CacheSettings, EncodeSettings
from stages.encode.sources import SOURCES, Source
from stages.progress import Advance, progress

# Images hashed by one task of the pool.
INDEX_IMAGES = 256


class ImageError(RepaCacheError):
    """An image cannot be decoded."""


@dataclass(frozen=True)
class BuildSummary:
    """What a cache holds after a build, and how many shards this build made."""

    path: Path
    rows: int
    columns: tuple[Column, ...]
    shards_made: int

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows of all columns."""
        return sum(column.row_bytes * column.rows for column in self.columns)


def build(settings: EncodeSettings, device: torch.device) -> BuildSummary:
    """Encode every image that a column lacks.

    Raises RowsChangedError if the data set changed since the cache was made, StaleCacheError
    if a column was built by another recipe; neither touches the cache.
    """
    dataset, path = settings.dataset, settings.cache.path
    source = SOURCES[dataset.source](dataset.path, dataset.resolution)
    with ThreadPoolExecutor(settings.build.threads) as pool:
        current = _index(source, settings.cache.seed, pool)
        makers = load_makers(settings, device)
        rows = _open_rows(settings.cache, current, makers)
        columns = [_open_column(path, maker, dataset.resolution) for maker in makers]
        missing = {column.name: ledger.missing(column, rows) for column in columns}
        encoder = _ShardEncoder(source, rows, settings, pool)
        encoder.encode_all(columns, makers, missing)
    return BuildSummary(path, len(rows), tuple(columns), sum(map(len, missing.values())))


def _index(source: Source, seed: int, pool: Executor) -> RowTable:
    """List the data set and hash every file."""

    def hash_some(start: int) -> list[tuple[int, int]]:
        stop = min(start + INDEX_IMAGES, len(source.keys))
        return [content_hash(source.read(index)) for index in range(start, stop)]

    hashes: list[tuple[int, int]] = []
    with progress("index", len(source.keys), "images") as advance:
        for some in pool.map(hash_some, range(0, len(source.keys), INDEX_IMAGES)):
            hashes += some
            advance(len(some), "")
    return RowTable.permuted(
        source.keys, source.labels, np.array(hashes, np.uint64), source.classes, seed
    )


def _open_rows(settings: CacheSettings, current: RowTable, makers: Sequence[Maker]) -> RowTable:
    """The rows of the cache, made on first use, after everything else about it was checked."""
    path = settings.path
    if not path.exists():
        create_cache(path, current, settings.rows_per_shard, settings.seed)
        return current
    root = root_attributes(path)
    fixed = {"rows_per_shard": settings.rows_per_shard, "permutation_seed": settings.seed}
    if changed := differences({field: root[field] for field in fixed}, fixed):
        raise StaleCacheError(
            f"{path}: what is fixed when a cache is made differs ({'; '.join(changed)}). "
            "Restore cache.rows_per_shard and cache.seed, or choose another cache.path."
        )
    rows = read_rows(path)
    check_same_rows(path, rows, current)
    for maker in makers:
        if has_column(path, maker.column):
            check_recipe(read_column(path, maker.column), maker.recipe)
    return rows


def _open_column(path: Path, maker: Maker, resolution: int) -> Column:
    """The column that a maker fills, made on first use."""
    if not has_column(path, maker.column):
        root = root_attributes(path)
        probe = maker.encode(torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8))
        column = Column(
            name=maker.column,
            folder=path / maker.column,
            arrays=tuple(ArraySpec(n, str(a.dtype), a.shape[1:]) for n, a in probe.items()),
            recipe=maker.recipe,
            rows=root["rows"],
            rows_per_shard=root["rows_per_shard"],
        )
        create_column(column, _provenance())
    return read_column(path, maker.column)


def _provenance() -> dict[str, str]:
    """Which software makes a column, and when: of use to readers, without effect on identity."""
    packages = ("repa-cache", "torch", "timm", "diffusers", "pillow")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


@dataclass(frozen=True)
class _ShardEncoder:
    """Reads, crops and encodes the images of a shard, once for all columns that lack it."""

    source: Source
    rows: RowTable
    settings: EncodeSettings
    pool: Executor

    @cached_property
    def positions(self) -> dict[str, int]:
        """Where the source lists each key."""
        return {key: position for position, key in enumerate(self.source.keys)}

    def encode_all(
        self,
        columns: Sequence[Column],
        makers: Sequence[Maker],
        missing: Mapping[str, Sequence[int]],
    ) -> None:
        """Make the missing shards of every column, in order."""
        shards = sorted({shard for lacking in missing.values() for shard in lacking})
        images = sum(len(columns[0].shard_rows(shard)) for shard in shards)
        if not shards:
            return
        with progress("build", images, "images") as advance:
            for shard in shards:
                pairs = zip(columns, makers, strict=True)
                self._encode(shard, [(c, m) for c, m in pairs if shard in missing[c.name]], advance)

    def _encode(
        self, shard: int, lacking: Sequence[tuple[Column, Maker]], advance: Advance
    ) -> None:
        columns = [column for column, _ in lacking]
        span = columns[0].shard_rows(shard)
        size = self.settings.build.batch_size
        crops = self.pool.map(self._crop, span)
        with write_shards(columns, shard, self.rows.digest(span)) as writers:
            while images := list(islice(crops, size)):
                batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
                for column, maker in lacking:
                    writers[column.name].write(maker.encode(batch))
                advance(len(images), "")

    def _crop(self, row: int) -> Pixels:
        """The crop of a row's image, whose file must be the one that was indexed."""
        key = str(self.rows.key[row])
        content = self.source.read(self.positions[key])
        if content_hash(content) != self.rows.hash_of(row):
            raise RowsChangedError(f"{key} changed while the cache was built. Run the build again.")
        try:
            return centre_crop(decode(content), self.settings.dataset.resolution)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{key} cannot be decoded: {error}. Mend or remove it.") from error
