"""Reading the rows of an array that lies in an object store: ranges of objects, many at once."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import zarr

from cache.file_layout import Layout
from cache.reader_threads import ReaderThreads
from cache.shard_files import Buffer, RowNumbers, Shard, ShardRows
from cache.stores.places import IN_FLIGHT, StorePath

# Larger ranges gain nothing, and are lost as a whole when a connection breaks.
RANGE_BYTES = 8 << 20
# Bytes between rows that cost less than another request.
GAP_BYTES = 64 << 10


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

    @property
    def size(self) -> int:
        """Its bytes, with the index."""
        return self._bytes

    def content(self, offset: int, size: int) -> memoryview:
        """So many bytes from an offset on."""
        if offset + size > self._bytes:
            raise self.damaged("it is shorter than its index says")
        try:
            return self._object.read_range(offset, size)
        except FileNotFoundError as error:
            raise self.missing() from error

    def read(self, offset: int, view: memoryview, *, unbuffered: bool = True) -> None:  # noqa: ARG002 - nothing is buffered
        view[:] = self.content(offset, len(view))


@dataclass
class Range:
    """Bytes of an object that are asked for at once.

    parts: offset and size of what is wanted of them, and between which of the wanted rows, sorted,
    it lies.
    """

    file: Shard
    start: int
    stop: int
    parts: list[tuple[int, int, int, int]] = field(default_factory=list)

    def contents(self) -> Iterator[tuple[memoryview, int, int]]:
        """The bytes of each part, with its rows."""
        whole = self.file.content(self.start, self.stop - self.start)
        for offset, size, first, last in self.parts:
            place = offset - self.start
            yield whole[place : place + size], first, last


class ObjectRows(ShardRows):
    """Reads rows of an array in a store straight from its objects.

    in_flight: requests that a process has at work at the same time, over all of its arrays.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        layout: Layout,
        path: StorePath,
        in_flight: int = IN_FLIGHT,
        *,
        unbuffered: bool = False,
    ) -> None:
        self._path, self._in_flight = path, in_flight
        self._opening: dict[int, Future[Shard]] = {}
        super().__init__(array, layout, unbuffered=unbuffered)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_opening": {}}

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, C-contiguous [B, ...], with rows [B] in any order."""
        if out.size:
            self._read_ranges(rows, np.arange(len(rows)), out.reshape(-1).view(np.uint8))

    def _read_ranges(self, rows: RowNumbers, places: RowNumbers, out: Buffer) -> None:
        """Fill the rows of `out`, bytes, at some places."""
        size = self._layout.row_bytes
        target, (rows, places) = out.reshape(-1, size), _sorted(rows, places)

        def fill(one: Range) -> None:
            for content, first, last in one.contents():
                target[places[first:last]] = np.frombuffer(content, np.uint8).reshape(-1, size)

        _requests(self._in_flight).map(fill, self._ranges(rows))

    def chunks(self, rows: RowNumbers) -> Iterable[tuple[Shard, bytes]]:
        rows, places = _sorted(rows, np.arange(len(rows)))
        found: dict[int, tuple[Shard, bytes]] = {}

        def fill(one: Range) -> None:
            for content, first, _ in one.contents():
                found[int(places[first])] = one.file, bytes(content)

        _requests(self._in_flight).map(fill, self._ranges(rows))
        return [found[place] for place in range(len(rows))]

    def _ranges(self, rows: RowNumbers) -> list[Range]:
        """What is asked for to have some rows, sorted: neighbours together."""
        numbers = np.unique(rows // self._layout.rows_per_file).tolist()
        _requests(self._in_flight).map(self._file, numbers)
        found: list[Range] = []
        for file, offset, first, last, size in self._extents(rows):
            previous = found[-1] if found else None
            if previous is None or not _is_near(previous, file, offset, offset + size):
                previous = Range(file, offset, offset + size)
                found.append(previous)
            previous.stop = max(previous.stop, offset + size)
            previous.parts.append((offset, size, first, last))
        return found

    def _extents(self, rows: RowNumbers) -> Iterator[tuple[Any, int, int, int, int]]:
        """File, offset, first and last of rows that lie together, and their size in it."""
        if self._layout.is_compressed:
            for number, row in enumerate(rows.tolist()):
                file, position = self.file(row)
                offset, size = file.extent(position)
                yield file, offset, number, number + 1, size
            return
        size = self._layout.row_bytes
        most = max(RANGE_BYTES // size, 1)
        for file, offset, start, stop in self._runs(rows):
            for first in range(start, stop, most):
                last = min(first + most, stop)
                yield file, offset + (first - start) * size, first, last, (last - first) * size

    def _open_file(self, number: int) -> Shard:
        """Open a file, once for all threads that wait for it."""
        mine: Future[Shard] = Future()
        opening = self._opening.setdefault(number, mine)
        if opening is mine:
            try:
                mine.set_result(ShardObject(self._path / self._key(number), self._layout))
            except BaseException as error:
                mine.set_exception(error)
            finally:
                del self._opening[number]
        return opening.result()


def _sorted(rows: RowNumbers, places: RowNumbers) -> tuple[RowNumbers, RowNumbers]:
    """Rows in ascending order, with their places."""
    order = np.argsort(rows, kind="stable")
    return rows[order], places[order]


def _is_near(previous: Range, file: Shard, start: int, stop: int) -> bool:
    """Whether bytes are asked for along with those before them."""
    return (
        file is previous.file
        and previous.start <= start <= previous.stop + GAP_BYTES
        and stop - previous.start <= RANGE_BYTES
    )


@lru_cache
def _requests(in_flight: int) -> ReaderThreads:
    """The threads that wait for a store."""
    return ReaderThreads(in_flight, "store")
