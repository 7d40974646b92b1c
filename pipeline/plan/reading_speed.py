"""How fast this machine reads batches, of a cache or of one of random rows."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.filesize import decimal

from cache.files import remove_folder
from cache.layout import VALID, ArraySpec, Column
from cache.metadata import create_column
from cache.rows import RowTable, create_cache
from cache.stores.places import Place
from cache.writer import ShardWriter
from stages.encode.building.provenance import provenance
from stages.placement import Placement
from stages.progress import say
from stages.train.batches import ENDLESS, CachedBatches, Order, store_reading
from stages.train.cached_data import CachedData
from stages.train.run_model import config_of, training_flops
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors, TrainSettings

SCRATCH_BYTES = 1_000_000_000
BATCH_BYTES = 32 << 20
MEASURE_SECONDS = 5.0
# What a well-tuned training step reaches on an H100: 40 % of its dense bfloat16 peak.
GPU_FLOPS = 400e12


@dataclass(frozen=True)
class Scratch:
    """A finished cache of random rows. bytes_per_second: at which it was written."""

    path: Place
    rows: int
    bytes_per_second: float


@contextmanager
def scratch_cache(
    folder: Place, name: str, columns: Sequence[Column], table: RowTable, free_bytes: int | None
) -> Iterator[Scratch]:
    """Columns as planned, of as many random rows as fill some hundred megabytes.

    folder: where to make it, below a hidden name that belongs to a cache of this `name`: should
    this process be killed, the next build removes it; table: rows to take.
    """
    budget = SCRATCH_BYTES if free_bytes is None else min(SCRATCH_BYTES, free_bytes // 2)
    row_bytes = sum(column.row_bytes for column in columns)
    rows = max(min(budget // row_bytes, len(table)), 1)
    say(f"measure: writing and reading {decimal(rows * row_bytes)} of random rows in {folder}")
    with _removed(folder / f".{name}.plan-{os.getpid()}.partial") as aside:
        path, some = aside / "scratch.zarr", table.take(np.arange(rows))
        create_cache(path, some, columns[0].rows_per_shard, 0)
        seconds = 0.0
        for planned in columns:
            column = replace(planned, folder=path / planned.name, rows=rows)
            create_column(column, provenance(column.recipe))
            seconds += _fill(column, some)
        yield Scratch(path, rows, rows * row_bytes / seconds)


@contextmanager
def _removed(folder: Place) -> Iterator[Place]:
    """A folder that is there meanwhile."""
    if isinstance(folder, Path):
        folder.mkdir()
    try:
        yield folder
    finally:
        remove_folder(folder)


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


def _random(array: ArraySpec, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Rows that no disk can compress, all valid."""
    shape = (rows, *array.row_shape)
    if array == VALID:
        return np.ones(shape, array.dtype)
    if np.dtype(array.dtype).kind == "f":
        return generator.random(shape, np.float32).astype(array.dtype)
    limits = np.iinfo(array.dtype)
    return generator.integers(limits.min, limits.max, shape, array.dtype, endpoint=True)


@dataclass(frozen=True)
class Reading:
    """How many images a second can be read, in the order of training.

    cold: from the disk, nothing of it in memory; warm: the same batches once more; needed: by
    one GPU that trains the configured model.
    """

    image_bytes: int
    batch_size: int
    model: str
    cold: float
    warm: float
    needed: float


def measure_reading(settings: TrainSettings, tensors: CachedTensors) -> Reading:
    """Read batches for some seconds, twice; cold, each image at most once.

    Writes nothing. Asks the system to forget the cached pages of the files that are read.
    """
    reading = settings.reading.model_copy(update={"memory_gb": 0.0})
    data = CachedData(
        tensors, settings.encoders, verify=reading.verify, reading=store_reading(reading)
    )
    order = Order(settings.seed, settings.batch_size, settings.block_rows)
    place, arrays = Placement(torch.device("cpu")), RunTerms.of(settings).arrays
    with closing(CachedBatches(data, arrays, order, place, reading, ENDLESS)) as batches:
        if isinstance(tensors.path, Path):
            for name in data.fingerprints:
                drop_cached_pages(tensors.path / name)
        epoch = max(len(data.valid) // settings.batch_size, 1)
        stop, cold = _read(batches, epoch)
        image_bytes = sum(t.nbytes for t in batches.take(0)) // settings.batch_size
        config = config_of(settings, data)
        flops = training_flops(settings, config, data.shape)
    with closing(CachedBatches(data, arrays, order, place, reading, ENDLESS)) as batches:
        _, warm = _read(batches, stop if stop < epoch else ENDLESS)
    size = settings.batch_size
    return Reading(image_bytes, size, settings.model, cold * size, warm * size, GPU_FLOPS / flops)


def drop_cached_pages(folder: Path, name: str = "c.*") -> None:
    """Ask the system to forget what it holds in memory of the files below a folder."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in (entry for entry in folder.rglob(name) if entry.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            # Pages that are not on disk yet cannot be forgotten.
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _read(batches: CachedBatches, most: int) -> tuple[int, float]:
    """Read at most so many steps for some seconds; returns where it stopped, and steps a second.

    The first step starts threads, opens files and shuffles an epoch: it counts if it is the only
    one.
    """
    first = min(1, most - 1)
    for step in range(first):
        batches.take(step)
    start, step, seconds = time.monotonic(), first, 0.0
    while step < most and seconds < MEASURE_SECONDS:
        batches.take(step)
        step, seconds = step + 1, time.monotonic() - start
    return step, (step - first) / seconds
