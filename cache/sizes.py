"""What a cache of N rows takes on disk, before it is written."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from cache.layout import LEDGER, LEDGER_BYTES, ArraySpec, Column
from cache.metadata import create_column
from cache.order import permutation
from cache.recipe import Recipe
from cache.rows import CHUNK_ROWS, RowTable, create_cache

# What zarr calls the folder of an array's chunks.
CHUNKS = "c"


@dataclass(frozen=True)
class Size:
    """files: their number; bytes: of all of them."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.files + other.files, self.bytes + other.bytes)


def shards_size(
    column: Column, array: ArraySpec, rows: int, shards: int, compressed: float = 1.0
) -> Size:
    """Of the files of some shards of an array, which hold so many rows together.

    compressed: what compression leaves of the rows of an array that is compressed.
    """
    if array is LEDGER:
        return Size(shards, shards * LEDGER_BYTES)
    saved = rows * array.row_bytes * (1 - compressed) if array.is_compressed else 0
    return Size(shards, column.bytes_of(array, rows, shards) - round(saved))


def sample_table(
    keys: Sequence[str], labels: npt.NDArray[np.int32], classes: Sequence[str]
) -> RowTable:
    """A row table as a build would write it, of as many images as lie in one of its chunks.

    Content hashes and stamps are random, as those of images are to a compressor.
    """
    chosen = permutation(len(keys), 0)[:CHUNK_ROWS]
    generator = np.random.default_rng(0)
    return RowTable(
        key=np.array([keys[index] for index in chosen], dtype=np.dtypes.StringDType()),
        label=labels[chosen],
        source_index=chosen,
        content_hash=generator.integers(1 << 63, size=(len(chosen), 2), dtype=np.uint64),
        stamp=generator.integers(1 << 63, size=len(chosen), dtype=np.uint64),
        classes=tuple(classes),
    )


def metadata_sizes(
    columns: Sequence[Column],
    table: RowTable,
    rows: int,
    provenance: Callable[[Recipe], dict[str, str]],
) -> dict[Path, Size]:
    """Of everything but shards, by path in the cache: zarr.json, the row table, constants.

    They are written aside and measured. table: the rows of the cache, or as many of its N rows
    as fill one chunk; provenance: of a column, by its recipe.
    """
    sizes = {}
    with TemporaryDirectory() as aside:
        path = Path(aside) / "cache.zarr"
        create_cache(path, table, columns[0].rows_per_shard, 0)
        for column in columns:
            create_column(replace(column, folder=path / column.name), provenance(column.recipe))
        for file in (entry for entry in path.rglob("*") if entry.is_file()):
            name, size = file.relative_to(path), file.stat().st_size
            is_table = name.parts[0] == "rows" and CHUNKS in name.parts
            chunks = math.ceil(rows / CHUNK_ROWS) if is_table else 1
            bytes_ = math.ceil(size * rows / len(table)) if is_table else size
            sizes[name] = Size(chunks, bytes_)
    return sizes
