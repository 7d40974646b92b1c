"""A cache without networks to which a build adds images, and what a reader may see of it."""

import shutil
from functools import lru_cache
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from tiny_cache import ROWS, SEED, fill, make_rows, values

from cache import ledger
from cache.changes import merged
from cache.errors import IncompleteCacheError
from cache.metadata import read_column, resize_column
from cache.reader import Cache
from cache.rows import RowTable, read_rows, write_rows
from cache.verify import Remedy, check_shard, survey

COLUMN = "features/x"
ADDED = 3


@lru_cache
def rows_of(count: int) -> RowTable:
    """The table when it has so many rows."""
    if count <= ROWS:
        return make_rows(count)
    return merged(rows_of(count - ADDED), make_rows(count), SEED)


def grow(path: Path) -> None:
    """All that a build does to a cache when images were added."""
    rows = rows_of(len(read_rows(path)) + ADDED)
    write_rows(path, rows)
    column = read_column(path, COLUMN, len(rows))
    resize_column(column)
    for shard in ledger.missing(column, rows):
        fill(column, shard, rows)


def check_rows(path: Path) -> int:
    """Read the table: it is one of those that were written. Returns its length."""
    rows = read_rows(path)
    assert rows.equals(rows_of(len(rows)))
    return len(rows)


def check_column(path: Path, *, opened: Cache | None = None) -> None:
    """Read everything, or find that the shards of added rows are still missing."""
    cache = opened or Cache(path)
    assert cache.rows.equals(rows_of(len(cache.rows)))
    try:
        reader = cache.column(COLUMN, verify=True)
    except IncompleteCacheError:
        assert len(cache.rows) > ROWS
        return
    for array in reader.column.arrays:
        stored = reader.read(array.name, np.arange(len(cache.rows)))
        np.testing.assert_array_equal(stored, values(array, len(cache.rows)))


def check_survey(path: Path) -> None:
    """Verify the cache: at most it lacks shards that are being made."""
    found = survey(path)
    faults = [*found.faults, *(fault for one in found.shards for fault in check_shard(one))]
    assert [fault for fault in faults if fault.remedy is not Remedy.BUILD] == []


CHECKS = {"rows": check_rows, "column": check_column, "survey": check_survey}


def write(path: Path, times: int, is_done: Event) -> None:
    """What a test runs in one process: a build that adds images again and again."""
    for _ in range(times):
        grow(path)
    is_done.set()


def read(path: Path, check: str, is_done: Event, answers: Any) -> None:
    """What it runs in others: readers that start at any moment."""
    reads = 0
    try:
        while not is_done.is_set() or not reads:
            CHECKS[check](path)
            reads += 1
    except BaseException as error:
        answers.put(f"{check}, read {reads}: {error!r}")
    else:
        answers.put(reads)


def copied(path: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(path, to)
    return to
