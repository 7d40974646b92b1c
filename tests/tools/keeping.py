"""Reading a tiny cache in a store, whose shards are kept on a local disk."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny_cache import ARRAYS, ROWS, values

from cache.reader import Cache, ColumnReader
from cache.stores.kept_rows import StoreReading
from cache.stores.local_shards import LocalShards
from cache.stores.places import StorePath

NAMES = [array.name for array in ARRAYS[:-1]]
SHARDS = 3
WAIT_SECONDS = 30
IN_ORDER = np.arange(ROWS)


def opened(place: StorePath, local: LocalShards) -> ColumnReader:
    reading = StoreReading(in_flight=8, local=local)
    return Cache(place, reading).column("features/x", verify=True)


def expect(reader: ColumnReader, rows: np.ndarray, names: list[str] = NAMES) -> None:
    for name in names:
        reader.rows(name).expect(rows)


def until(claim: Callable[[], bool]) -> None:
    start = time.monotonic()
    while not claim():
        assert time.monotonic() - start < WAIT_SECONDS, "it did not come"
        time.sleep(0.01)


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def read_all(reader: ColumnReader, names: list[str] = NAMES, factor: int = 1) -> None:
    rows = np.random.default_rng(0).permutation(np.tile(IN_ORDER, 2))
    for spec in ARRAYS:
        if spec.name in names:
            expected = (values(spec) * factor)[rows]
            np.testing.assert_array_equal(reader.read(spec.name, rows), expected)


def share(place: StorePath, folder: Path) -> None:
    """What a test runs in several processes: rows are read of what is kept alone."""
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    while len(kept(folder)) < SHARDS * len(NAMES):
        # Those that somebody else fetched are seen when the next rows are known.
        time.sleep(0.05)
        expect(reader, IN_ORDER)
    expect(reader, IN_ORDER)
    read_all(reader)
