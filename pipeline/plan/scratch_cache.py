"""A cache of random rows, which is removed again: what a disk takes and gives."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from cache.layout import VALID, ArraySpec, Column
from cache.metadata import create_column
from cache.rows import RowTable, create_cache
from cache.writer import ShardWriter
from stages.encode.building.column_specs import provenance
from stages.progress import say

SCRATCH_BYTES = 1_000_000_000
BATCH_BYTES = 32 << 20


@dataclass(frozen=True)
class Scratch:
    """A finished cache of random rows. bytes_per_second: at which it was written."""

    path: Path
    rows: int
    bytes_per_second: float


@contextmanager
def scratch_cache(
    folder: Path, name: str, columns: Sequence[Column], table: RowTable, free_bytes: int
) -> Iterator[Scratch]:
    """Columns as planned, of as many random rows as fill some hundred megabytes.

    folder: where to make it, below a hidden name that belongs to a cache of this `name`: should
    this process be killed, the next build removes it; table: rows to take.
    """
    budget = min(SCRATCH_BYTES, free_bytes // 2)
    row_bytes = sum(column.row_bytes for column in columns)
    rows = max(min(budget // row_bytes, len(table)), 1)
    say(f"measure: writing and reading {decimal(rows * row_bytes)} of random rows in {folder}")
    with TemporaryDirectory(
        prefix=f".{name}.plan-{os.getpid()}-", suffix=".partial", dir=folder
    ) as aside:
        path, some = Path(aside) / "scratch.zarr", table.take(np.arange(rows))
        create_cache(path, some, columns[0].rows_per_shard, 0)
        seconds = 0.0
        for planned in columns:
            column = replace(planned, folder=path / planned.name, rows=rows)
            create_column(column, provenance(column.recipe))
            seconds += _fill(column, some)
        yield Scratch(path, rows, rows * row_bytes / seconds)


def _fill(column: Column, table: RowTable) -> float:
    """Write all shards of a column, as a build does; returns the seconds that it took."""
    size = max(min(BATCH_BYTES // column.row_bytes, column.rows_per_shard), 1)
    generator = np.random.default_rng(0)
    batch = {array.name: _random(array, size, generator) for array in column.arrays}
    start = time.perf_counter()
    for shard in range(column.shards):
        span = column.shard_rows(shard)
        with ShardWriter(column, shard, table.digest(span)) as writer:
            for first in range(0, len(span), size):
                count = min(size, len(span) - first)
                writer.write({name: rows[:count] for name, rows in batch.items()})
    return time.perf_counter() - start


def _random(array: ArraySpec, rows: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    """Rows that no disk can compress, all valid."""
    shape = (rows, *array.row_shape)
    if array == VALID:
        return np.ones(shape, array.dtype)
    if np.dtype(array.dtype).kind == "f":
        return generator.random(shape, np.float32).astype(array.dtype)
    limits = np.iinfo(array.dtype)
    return generator.integers(limits.min, limits.max, shape, array.dtype, endpoint=True)
