"""A small cache without networks: arrays of random numbers, in three shards."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cache.layout import VALID, ArraySpec, Column
from cache.metadata import create_column, read_column
from cache.reader import ColumnReader
from cache.rows import RowTable, content_hash, create_cache
from cache.stores.places import Place, StorePath
from cache.writer import ShardWriter

ROWS, ROWS_PER_SHARD, SEED = 21, 8, 5
SHARDED = ArraySpec("tokens", "float16", (16, 130))
DENSE = ArraySpec("class_token", "float16", (130,))
COMPRESSED = ArraySpec("pixels", "uint8", (3, 9, 9), is_compressed=True)
ARRAYS = (SHARDED, DENSE, COMPRESSED, VALID)


def make_rows(count: int = ROWS) -> RowTable:
    keys = [f"n{i % 3}/photo ü {i}.jpg" for i in range(count)]
    return RowTable(
        key=np.array(keys, np.dtypes.StringDType()),
        label=np.array([i % 3 for i in range(count)], np.int32),
        source_index=np.arange(count),
        content_hash=np.array([content_hash(key.encode()) for key in keys], np.uint64),
        stamp=np.arange(1, count + 1, dtype=np.uint64),
        classes=("a", "b", "c"),
    ).permuted(SEED)


def values(spec: ArraySpec, rows: int = ROWS) -> np.ndarray:
    shape = (rows, *spec.row_shape)
    numbers = np.random.default_rng(len(spec.name)).normal(size=shape)
    return (16 * abs(numbers) if spec.dtype == "uint8" else numbers).astype(spec.dtype)


def make_column(
    path: Path, name: str = "features/x", rows: int = ROWS, model: str | None = None
) -> Column:
    recipe = {"model": model or name, "size": 3, "storage": "float16"}
    create_column(
        Column(name, path / name, ARRAYS, recipe, rows, ROWS_PER_SHARD),
        {"created": "today"},
    )
    return read_column(path, name, rows)


def fill(column: Column, shard: int, rows: RowTable, batch: int = 3, factor: int = 1) -> None:
    span = column.shard_rows(shard)
    with ShardWriter(column, shard, rows.digest(span)) as writer:
        for start in range(span.start, span.stop, batch):
            stop = min(start + batch, span.stop)
            batch_values = {a.name: values(a, column.rows)[start:stop] for a in column.arrays}
            writer.write({name: array * factor for name, array in batch_values.items()})


def make_cache(path: Path) -> Column:
    """A finished cache with one column."""
    rows = make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, SEED)
    column = make_column(path)
    for shard in (2, 0, 1):
        fill(column, shard, rows)
    return column


def read_elsewhere(reader: ColumnReader, queue: Any) -> None:
    """What a test runs in another process."""
    queue.put(reader.read("tokens", list(range(ROWS))))


def files_in(place: Place) -> dict[str, bytes]:
    """All files, or objects, below a place, by their paths in it."""
    if isinstance(place, StorePath):
        return {one.relative_to(place).as_posix(): one.read_bytes() for one in place.tree()}
    files = (file for file in sorted(place.rglob("*")) if file.is_file())
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}


def content(place: Place) -> dict[str, str]:
    """The sha256 of every file of a cache, by its path; columns without the times of making."""
    files = {}
    for path, found in files_in(place).items():
        if path.endswith("zarr.json") and b'"provenance"' in found:
            metadata = json.loads(found)
            del metadata["attributes"]["provenance"]
            metadata["attributes"].pop("build_times", None)
            found = json.dumps(metadata).encode()
        files[path] = hashlib.sha256(found).hexdigest()
    return files
