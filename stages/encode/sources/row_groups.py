"""Images of parquet files at random, through a few decoded row groups."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from weakref import WeakSet

import numpy as np
import pyarrow as pa

from stages.encode.sources.parquet_files import ParquetFile

# Neighbouring blocks of images touch up to two each while threads go from one to the next.
GROUPS_HELD = 4


class RowGroups:
    """The rows of several files, one after the other, of which the last groups used are held."""

    def __init__(self, files: Sequence[ParquetFile]) -> None:
        self._files = files
        self._groups = [(file, i) for file in files for i in range(len(file.groups))]
        rows = [count for file in files for count in file.groups]
        self._starts = np.cumsum([0, *rows])
        self._file_starts = np.cumsum([0, *(sum(file.groups) for file in files)])
        self.block_rows = max(rows, default=1)
        self.forget()
        _instances.add(self)

    def __reduce__(self) -> tuple[type["RowGroups"], tuple[Sequence[ParquetFile]]]:
        # Another process has threads and row groups of its own.
        return RowGroups, (self._files,)

    def forget(self) -> None:
        """Hold nothing, as in the beginning."""
        self._lock = Lock()
        self._held: OrderedDict[int, Future[pa.ChunkedArray]] = OrderedDict()

    def read(self, row: int) -> bytes:
        """The content of an image. Raises OSError or ValueError if it cannot be had."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content: bytes | None = self._group(group)[row - int(self._starts[group])].as_py()
        if content is None:
            raise ValueError("the column `image` has no bytes in this row")
        return content

    def stamp(self, row: int) -> int:
        """A number that changes when the file does."""
        file = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return self._files[file].archive.stamp(row - int(self._file_starts[file]))

    def _group(self, number: int) -> pa.ChunkedArray:
        """A row group, which one thread decodes while others that want it wait."""
        with self._lock:
            future = self._held.pop(number, None)
            is_mine = future is None
            future = future or Future()
            self._held[number] = future
            while len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
        if is_mine:
            file, group = self._groups[number]
            try:
                future.set_result(file.read_group(group))
            except BaseException as error:
                with self._lock:
                    self._held.pop(number, None)
                future.set_exception(error)
        return future.result()


_instances: WeakSet[RowGroups] = WeakSet()


def _forget_all() -> None:
    """In a forked child, where no thread is left that may hold a lock or owe a group."""
    for groups in _instances:
        groups.forget()


os.register_at_fork(after_in_child=_forget_all)
