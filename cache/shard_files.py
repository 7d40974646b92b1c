"""Where the rows of a Zarr array lie in its files, and reading them from there.

Zarr's own reading path opens files, checks indexes and copies several times for each row. Here
an array's metadata is parsed once, a shard's index once, and a row is one `preadv` into the
caller's buffer.
"""

import errno
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr

from cache.bounced_reads import read_by_bounce
from cache.errors import DamagedCacheError, IncompleteCacheError
from cache.file_layout import ALIGNMENT, Layout
from cache.files import HeldFolder
from cache.stores.places import Place

Buffer = npt.NDArray[Any]
RowNumbers = npt.NDArray[np.int64]

MOST_OPEN_FILES = 1 << 20
ABSENT = np.iinfo(np.uint64).max


class Shard:
    """A file of an array, with its index. path: where it lies; layout: of its rows."""

    def __init__(self, path: Place, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._bytes = 0
        self._index: list[tuple[int, int]] | None = None

    def read(self, offset: int, view: memoryview, *, unbuffered: bool) -> None:
        """Fill a view with the bytes from an offset on."""
        raise NotImplementedError

    def _index_in(self, content: bytes) -> list[tuple[int, int]]:
        """Where each chunk begins, -1 if it is absent, and its size, by the index's bytes."""
        layout = self._layout
        body = content[:-4] if layout.has_checksum else content
        checksum = google_crc32c.value(body).to_bytes(4, "little")
        if len(content) < layout.index_bytes or not content.endswith(
            checksum if layout.has_checksum else b""
        ):
            raise self.damaged("its index is damaged")
        index = np.frombuffer(body, "<u8").reshape(-1, 2)
        starts, sizes = index[index[:, 0] != ABSENT].T
        chunk_bytes = layout.rows_per_chunk * layout.row_bytes
        is_wrong_size = not layout.is_compressed and (sizes != chunk_bytes).any()
        # Sizes first: sums of damaged numbers may wrap around.
        if is_wrong_size or (sizes > self._bytes).any() or (starts > self._bytes - sizes).any():
            raise self.damaged("its index points outside of the file")
        return [(start, size) for start, size in index.astype(np.int64).tolist()]

    @property
    def _index_start(self) -> int:
        """Where a file's index begins."""
        at_end = self._layout.index == "end"
        return max(self._bytes - self._layout.index_bytes, 0) if at_end else 0

    def offset(self, position: int) -> int:
        """Where a row begins."""
        layout = self._layout
        if self._index is None:
            return position * layout.row_bytes
        chunk, place = divmod(position, layout.rows_per_chunk)
        offset = self._index[chunk][0]
        if offset < 0:
            raise IncompleteCacheError(f"row {position} of the shard is absent", where=self._path)
        return offset + place * layout.row_bytes

    def runs(self, position: int, count: int) -> Iterator[tuple[int, int]]:
        """Where some rows begin that follow one another, and how many lie there together."""
        if self._index is None:
            yield self.offset(position), count
            return
        size, start = self._layout.row_bytes, position
        offsets = [self.offset(row) for row in range(position, position + count)]
        for row, (before, offset) in enumerate(pairwise(offsets), position + 1):
            if offset != before + size:
                yield offsets[start - position], row - start
                start = row
        yield offsets[start - position], position + count - start

    def extent(self, position: int) -> tuple[int, int]:
        """Where a row begins and its size, or those of its chunk if it is compressed."""
        start = self.offset(position)
        if self._layout.is_compressed and self._index is not None:
            return start, self._index[position][1]
        return start, self._layout.row_bytes

    def chunk(self, position: int) -> bytes:
        """The whole chunk that holds a row of an array of one row a chunk."""
        return bytes(self.content(*self.extent(position)))

    def content(self, offset: int, size: int) -> memoryview:
        """So many bytes from an offset on."""
        content = memoryview(bytearray(size))
        self.read(offset, content, unbuffered=False)
        return content

    def damaged(self, what: str) -> DamagedCacheError:
        """The error for content that is not what was written."""
        return DamagedCacheError(what, where=self._path)

    def missing(self) -> IncompleteCacheError:
        """The error where there is none."""
        return IncompleteCacheError(
            "it is missing", where=self._path, remedy="Run `repa-cache build --repair`."
        )


class ShardFile(Shard):
    """One that is open on a disk.

    Closes when nobody uses it any more, so that one thread may drop it while another reads.
    """

    def __init__(self, folder: HeldFolder, name: str, layout: Layout) -> None:
        super().__init__(folder.path / name, layout)
        self._folder, self._name = folder, name
        self._descriptors: list[int] = []
        try:
            self._buffered = self._open(0)
        except FileNotFoundError as error:
            raise self.missing() from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_RANDOM)
        self._bytes = os.fstat(self._buffered).st_size
        if layout.index:
            size = layout.index_bytes
            self._index = self._index_in(os.pread(self._buffered, size, self._index_start))

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        descriptor = self._folder.open(self._name, os.O_RDONLY | os.O_CLOEXEC | flags)
        self._descriptors.append(descriptor)
        return descriptor

    @cached_property
    def _unbuffered(self) -> int | None:
        """A descriptor that bypasses the page cache, where the file system has that."""
        try:
            descriptor = self._open(os.O_DIRECT)
        except (OSError, AttributeError):
            return None
        # It may be another file by now, with another index.
        return descriptor if os.path.sameopenfile(descriptor, self._buffered) else None

    def read(self, offset: int, view: memoryview, *, unbuffered: bool) -> None:
        """Fill a view with the bytes from an offset on."""
        if unbuffered and self._unbuffered is not None:
            fill = partial(self._fill, self._unbuffered)
            try:
                return fill(offset, view)
            except OSError as error:
                # Memory that a GPU's driver has mapped may be out of the disk's reach.
                if error.errno == errno.EFAULT:
                    return read_by_bounce(fill, offset, view)
                # The device asks for a larger alignment than the usual one.
                if error.errno != errno.EINVAL:
                    raise
        return self._fill(self._buffered, offset, view)

    def _fill(self, descriptor: int, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise self.damaged("it is shorter than its index says")
            done += count


class ShardRows:
    """Finds the rows of a Zarr array in its files.

    unbuffered: bypass the page cache where that can be. Safe to use from several threads, and to
    send to another process.
    """

    def __init__(self, array: zarr.Array[Any], layout: Layout, *, unbuffered: bool = False) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._layout, self._unbuffered = layout, unbuffered and layout.is_aligned
        self._encode_key = array.metadata.encode_chunk_key
        self._file = lru_cache(maxsize=open_files_limit())(self._open_file)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but open files, which another process opens for itself."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = lru_cache(maxsize=open_files_limit())(self._open_file)

    def file(self, row: int) -> tuple[Shard, int]:
        """The file that holds a row, and the row's place in it."""
        number, position = divmod(row, self._layout.rows_per_file)
        return self._file(number), position

    def chunks(self, rows: RowNumbers) -> Iterable[tuple[Shard, bytes]]:
        """The whole chunk of each row of an array of one row a chunk, and its file."""
        for row in rows.tolist():
            file, position = self.file(row)
            yield file, file.chunk(position)

    def _key(self, number: int) -> str:
        """The name of a file."""
        return self._encode_key((number, *(0 for _ in self.shape[1:])))

    def _open_file(self, number: int) -> Shard:
        raise NotImplementedError

    def _read_files(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, bytes, with rows of files that are open on a disk."""
        unbuffered = self._unbuffered and out.ctypes.data % ALIGNMENT == 0
        view, size = out.data, self._layout.row_bytes
        for file, offset, start, stop in self._runs(rows):
            file.read(offset, view[start * size : stop * size], unbuffered=unbuffered)

    def _runs(self, rows: RowNumbers) -> Iterator[tuple[Shard, int, int, int]]:
        """File, offset, and places in the buffer of rows that lie together."""
        # The first one follows no row.
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        bounds = [*starts.tolist(), len(rows)]
        for row, (place, stop) in zip(rows[starts].tolist(), pairwise(bounds), strict=True):
            if stop - place == 1:
                file, position = self.file(row)
                yield file, file.offset(position), place, stop
            else:
                yield from self._runs_of(row, place, stop)

    def _runs_of(self, row: int, place: int, stop: int) -> Iterator[tuple[Shard, int, int, int]]:
        """The same of rows that follow one another."""
        while place < stop:
            file, position = self.file(row)
            left = min(stop - place, self._layout.rows_per_file - position)
            row += left
            for offset, count in file.runs(position, left):
                yield file, offset, place, place + count
                place += count


class DirectRows(ShardRows):
    """Reads rows of a local Zarr array straight from its files, also after a fork."""

    def __init__(self, array: zarr.Array[Any], layout: Layout, *, unbuffered: bool) -> None:
        store: Any = array.store
        self._folder = HeldFolder(Path(store.root) / array.path)
        super().__init__(array, layout, unbuffered=unbuffered)

    def _open_file(self, number: int) -> Shard:
        return ShardFile(self._folder, self._key(number), self._layout)

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, C-contiguous [B, ...], with rows [B] in any order."""
        if out.size:
            self._read_files(rows, out.reshape(-1).view(np.uint8))


@lru_cache(maxsize=1)
def open_files_limit() -> int:
    """How many files one array may keep open, after asking the system for all it grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    # Two descriptors a file, several arrays a process, and room for everybody else.
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16)
