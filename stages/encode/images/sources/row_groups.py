"""Images of parquet files at random, through a few decoded parts of row groups."""

import os
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from weakref import WeakSet

import numpy as np
import pyarrow as pa

from stages.encode.images.sources.parquet_files import ParquetFile
from stages.encode.images.sources.table_columns import content_of

# Of decoded parts. Each of the threads that index a data set goes through images of its own, 256
# at a time, which are 28 MB of ImageNet.
HELD_BYTES = 256 << 20
# Row groups that are read on from where they were left. Each may keep two pages in memory, which
# have 1024 images where Arrow wrote a group of that many.
WALKS_HELD = 4


@dataclass
class _Walk:
    """A way through a row group, part by part. part: the one that comes next."""

    part: int
    images: Generator[pa.ChunkedArray]


class RowGroups:
    """The rows of several files, one after the other, of which the parts used last are held."""

    def __init__(self, files: Sequence[ParquetFile]) -> None:
        groups = [(file, i) for file in files for i in range(len(file.groups))]
        rows: list[int] = []
        # Of each part: the file, the row group in it, and the first and last part of the group.
        self._groups: list[tuple[ParquetFile, int, range]] = []
        for file, group in groups:
            count, step = file.groups[group], file.parts[group]
            sizes = [min(step, count - start) for start in range(0, count, step)]
            parts = range(len(rows), len(rows) + len(sizes))
            self._groups += [(file, group, parts)] * len(sizes)
            rows += sizes
        self._files = files
        self._starts = np.cumsum([0, *rows])
        self._file_starts = np.cumsum([0, *(sum(file.groups) for file in files)])
        self.block_rows = max((file.groups[group] for file, group in groups), default=1)
        self.forget()
        _instances.add(self)

    def __reduce__(self) -> tuple[type["RowGroups"], tuple[Sequence[ParquetFile]]]:
        # Another process has threads and row groups of its own.
        return RowGroups, (self._files,)

    def forget(self) -> None:
        """Hold nothing, as in the beginning."""
        self._lock = Lock()
        self._held: OrderedDict[int, Future[pa.ChunkedArray]] = OrderedDict()
        self._walking = Lock()
        self._walks: list[_Walk] = []

    def read(self, file: int, row: int) -> bytes | None:
        """The bytes of an image, if it has any. Raises OSError if they cannot be had."""
        row += int(self._file_starts[file])
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._groups[part][0].column is None:
            return None
        return content_of(self._part(part)[row - int(self._starts[part])])

    def _part(self, number: int) -> pa.ChunkedArray:
        """A part, which one thread decodes while others that want it wait."""
        with self._lock:
            future = self._held.pop(number, None)
            is_mine = future is None
            future = future or Future()
            self._held[number] = future
        if is_mine:
            try:
                self._decode(number, future)
            except BaseException as error:
                with self._lock:
                    self._held.pop(number, None)
                future.set_exception(error)
        return future.result()

    def _decode(self, number: int, future: Future[pa.ChunkedArray]) -> None:
        file, group, parts = self._groups[number]
        if len(parts) == 1:
            images = file.images(group)
            self._keep(number, next(images))
            images.close()
            return
        # One at a time: all that pass by are kept, and others are likely to want them.
        with self._walking:
            if not future.done():
                self._walk(number, parts)

    def _walk(self, number: int, parts: range) -> None:
        """Go on to a part of a row group from the nearest place before it."""
        behind = [walk for walk in self._walks if parts.start <= walk.part <= number]
        if behind:
            walk = max(behind, key=lambda walk: walk.part)
            self._walks.remove(walk)
        else:
            file, group, _ = self._groups[number]
            walk = _Walk(parts.start, file.images(group))
        while walk.part <= number:
            self._keep(walk.part, next(walk.images))
            walk.part += 1
        if walk.part < parts.stop:
            self._walks.append(walk)
        while len(self._walks) > WALKS_HELD:
            self._walks.pop(0).images.close()

    def _keep(self, number: int, images: pa.ChunkedArray) -> None:
        """Hold a part, for those who wait for it too, and let go of those used longest ago."""
        with self._lock:
            future = self._held.pop(number, None) or Future()
            if not future.done():
                future.set_result(images)
            self._held[number] = future
            sizes = {n: held.result().nbytes for n, held in self._held.items() if held.done()}
            excess = sum(sizes.values()) - HELD_BYTES
            for oldest in list(sizes)[:-1]:
                if excess <= 0:
                    break
                del self._held[oldest]
                excess -= sizes[oldest]


_instances: WeakSet[RowGroups] = WeakSet()


def _forget_all() -> None:
    """In a forked child, where no thread is left that may hold a lock or owe a part."""
    for groups in _instances:
        groups.forget()


os.register_at_fork(after_in_child=_forget_all)
