"""Reading rows of finished columns straight from their files into the caller's buffers."""

import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from cache import ledger
from cache.errors import IncompleteCacheError
from cache.layout import ArraySpec, Column, has_column, read_column, root_attributes
from cache.rows import RowTable, read_rows

Buffer = npt.NDArray[Any]


class Cache:
    """A cache opened for reading."""

    def __init__(self, path: Path) -> None:
        root_attributes(path)
        self.path = path
        self.rows: RowTable = read_rows(path)

    def column(self, name: str) -> "ColumnReader":
        """A reader for a column, for example `features/dinov2-vit-b`.

        Raises IncompleteCacheError if the column is missing or not finished.
        """
        if not has_column(self.path, name):
            raise IncompleteCacheError(
                f"{self.path} has no column {name}. Run `repa-cache build` to add it."
            )
        column = read_column(self.path, name)
        if missing := ledger.missing(column, self.rows):
            raise IncompleteCacheError(
                f"{self.path}/{name}: {len(missing)} of {column.shards} shards are missing. "
                "Run `repa-cache build` to finish it."
            )
        return ColumnReader(column)


class ColumnReader:
    """Reads any rows of any array of one column."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self._arrays = {array.name: array for array in column.arrays}
        self._indexes: dict[tuple[str, int], npt.NDArray[np.uint64]] = {}

    def array(self, name: str) -> ArraySpec:
        """The description of one array."""
        return self._arrays[name]

    def read(self, name: str, rows: npt.ArrayLike, out: Buffer | None = None) -> Buffer:
        """Rows [B], in any order and repeated at will, of an array as [B, *row_shape].

        out: a C-contiguous buffer of that shape and the array's dtype; made if not given.
        """
        array = self._arrays[name]
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.column.rows:
            raise IndexError(f"{self.column.name}: rows lie in 0 to {self.column.rows - 1}")
        if out is None:
            out = np.empty((len(wanted), *array.row_shape), array.dtype)
        if out.shape != (len(wanted), *array.row_shape) or out.dtype != array.dtype:
            raise ValueError(f"{self.column.name}/{name}: the buffer has another shape or dtype")
        shards, positions = np.divmod(wanted, self.column.rows_per_shard)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            self._read_shard(array, shard, positions[places], places, out)
        return out

    def _read_shard(
        self,
        array: ArraySpec,
        shard: int,
        positions: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        out: Buffer,
    ) -> None:
        path = self.column.shard_path(array, shard)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if array.is_sharded:
                offsets = self._index(array, shard, descriptor)[positions, 0]
            else:
                offsets = positions.astype(np.uint64) * np.uint64(array.row_bytes)
            for place, offset in zip(places.tolist(), offsets.tolist(), strict=True):
                if os.preadv(descriptor, [out[place].data], offset) != array.row_bytes:
                    raise IncompleteCacheError(f"{path} is shorter than its index says.")
        finally:
            os.close(descriptor)

    def _index(self, array: ArraySpec, shard: int, descriptor: int) -> npt.NDArray[np.uint64]:
        """Offset and size of every inner chunk of a shard, [rows_per_shard, 2]."""
        key = (array.name, shard)
        if key not in self._indexes:
            size = 16 * self.column.rows_per_shard
            content = os.pread(descriptor, size + 4, os.fstat(descriptor).st_size - size - 4)
            if google_crc32c.value(content[:size]).to_bytes(4, "little") != content[size:]:
                path = self.column.shard_path(array, shard)
                raise IncompleteCacheError(f"{path}: the index of the shard is damaged.")
            self._indexes[key] = np.frombuffer(content[:size], "<u8").reshape(-1, 2)
        return self._indexes[key]
