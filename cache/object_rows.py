"""Reading the rows of an array that lies in an object store: ranges of objects, many at once."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import zarr

from cache.file_layout import Layout
from cache.shard_files import Buffer, RowNumbers, Shard, ShardRows
from cache.stores import IN_FLIGHT, StorePath

Item = TypeVar("Item")
Found = TypeVar("Found")


class ShardObject(Shard):
    """One in a store. path: where it lies."""

    def __init__(self, path: StorePath, layout: Layout) -> None:
        super().__init__(path, layout)
        self._object = path
        try:
            self._bytes = path.stat().st_size
            if layout.index:
                size = min(layout.index_bytes, self._bytes)
                self._index = self._index_in(bytes(path.read_range(self._index_start, size)))
        except FileNotFoundError as error:
            raise self.missing() from error

    def read(self, offset: int, view: memoryview, *, unbuffered: bool = True) -> None:  # noqa: ARG002 - nothing is buffered
        if offset + len(view) > self._bytes:
            raise self.damaged("it is shorter than its index says")
        view[:] = self._object.read_range(offset, len(view))


class ObjectRows(ShardRows):
    """Reads rows of an array in a store straight from its objects."""

    def __init__(self, array: zarr.Array[Any], layout: Layout, path: StorePath) -> None:
        self._path = path
        super().__init__(array, layout)

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, C-contiguous [B, ...], with rows [B] in any order."""
        size = self._layout.row_bytes
        if not len(rows) or not size:
            return
        view = out.reshape(-1).view(np.uint8).data
        self._open_all(rows)

        def fill(run: tuple[Shard, int, int, int]) -> None:
            file, offset, start, stop = run
            file.read(offset, view[start * size : stop * size], unbuffered=True)

        _at_once(fill, list(self._runs(rows)))

    def chunks(self, rows: RowNumbers) -> Iterator[tuple[Shard, bytes]]:
        self._open_all(rows)

        def chunk(row: int) -> tuple[Shard, bytes]:
            file, position = self.file(row)
            return file, file.chunk(position)

        return iter(_at_once(chunk, rows.tolist()))

    def _open_all(self, rows: RowNumbers) -> None:
        """Have the indexes of all files that hold some rows."""
        _at_once(self._file, np.unique(rows // self._layout.rows_per_file).tolist())

    def _open_file(self, number: int) -> Shard:
        return ShardObject(self._path / self._key(number), self._layout)


def _at_once(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What `work` gives for each item, by threads that wait for the store."""
    if len(items) == 1:
        return [work(items[0])]
    return list(_pool(os.getpid()).map(work, items))


@lru_cache
def _pool(_process: int) -> ThreadPoolExecutor:
    """That of a process."""
    return ThreadPoolExecutor(IN_FLIGHT, "store")
