"""Rows of any Zarr array into the caller's buffers, by the fastest path its layout allows."""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import zarr

from cache.errors import CacheReplacedError, DamagedCacheError
from cache.file_layout import ALIGNMENT, find_layout
from cache.shard_files import Buffer, DirectRows, RowNumbers, ShardRows
from cache.shared_memory import SharedMemory
from cache.storage import decompress, row_checksums, unwarned
from cache.stores.kept_rows import BY_RANGES, ArrayIdentity, KeptRows, StoreReading
from cache.stores.object_rows import ObjectRows
from cache.stores.places import Place, for_zarr, place_of, reported


class RowReader(Protocol):
    """An array [N, ...] whose rows can be read.

    read: fills `out`, C-contiguous [B, ...] of the array's dtype, with rows [B] in any order,
    each within 0 to N - 1; may be called from several threads.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, rows: RowNumbers, out: Buffer) -> None: ...


@runtime_checkable
class ForeseenRows(RowReader, Protocol):
    """One that can be told which rows will be read, the next first."""

    def expect(self, rows: RowNumbers) -> None: ...


class Foreseen:
    """What an array that is read from another one passes on to it, if that keeps shards."""

    _source: Any

    def expect(self, rows: RowNumbers) -> None:
        """Tell it which rows will be read, the next first."""
        if isinstance(self._source, Foreseen | KeptRows):
            self._source.expect(rows)

    def forget(self, rows: RowNumbers) -> bool:
        """Remove what it keeps of some rows; whether there was anything."""
        return isinstance(self._source, Foreseen | KeptRows) and self._source.forget(rows)


class ZarrRows:
    """Reads through zarr-python: compressed and remote arrays, and any other layout."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array = array

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        if self._array.chunks[0] == 1:
            # Several times faster than asking for all at once, which gains where chunks are shared.
            for place, row in enumerate(rows.tolist()):
                out[place] = self._array[row]
        elif len(rows):
            out[...] = self._array.oindex[rows]


class CompressedRows(Foreseen):
    """Reads rows of an array whose inner chunks `compress` made. source: where these lie."""

    def __init__(self, source: ShardRows) -> None:
        self.shape, self.dtype = source.shape, source.dtype
        self._source = source

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, C-contiguous [B, ...], with rows [B] in any order."""
        found = self._source.chunks(rows)
        for row, target, (file, content) in zip(rows.tolist(), out, found, strict=True):
            try:
                decompress(content, target)
            except ValueError as error:
                raise file.damaged(f"row {row} cannot be decompressed: {error}") from error


class MemoryRows:
    """Holds an array in memory. shared: with the other processes of the machine."""

    def __init__(self, source: RowReader, shared: SharedMemory | None = None) -> None:
        self.shape, self.dtype = source.shape, source.dtype
        rows = np.arange(self.shape[0])
        seen = shared.buffer(self.shape, self.dtype) if shared else None
        values = aligned_buffer(self.shape, self.dtype) if seen is None else seen

        def read(part: slice) -> None:
            source.read(rows[part], values[part])

        if shared is None or seen is None:
            read(slice(None))
        else:
            shared.fill(len(rows), read)
        self._values = values

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        # Without a mode numpy checks every row once more, in a buffer of its own.
        np.take(self._values, rows, axis=0, out=out, mode="clip")


class JoinedRows:
    """Several arrays of the same shape [N, ...] as one: row r of array i is row i * N + r."""

    def __init__(self, sources: Sequence[RowReader]) -> None:
        self._rows, *row_shape = sources[0].shape
        self.shape, self.dtype = (self._rows * len(sources), *row_shape), sources[0].dtype
        self._sources = sources

    def expect(self, rows: RowNumbers) -> None:
        """Tell each array of its rows."""
        number, own = np.divmod(rows, self._rows)
        for place, source in enumerate(self._sources):
            if isinstance(source, ForeseenRows):
                source.expect(own[number == place])

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        number, own = np.divmod(rows, self._rows)
        bounds = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(bounds):
            if start < stop:
                self._sources[number[start]].read(own[start:stop], out[start:stop])


class CheckedRows(Foreseen):
    """Compares every row that is read with its checksum.

    checksums: uint32 [N]; name: of the array, for the message; is_outdated: whether a row, which
    has another checksum, was written anew since checksums were read.
    """

    def __init__(
        self,
        source: RowReader,
        checksums: npt.NDArray[np.uint32],
        name: str,
        is_outdated: Callable[[int], bool],
    ) -> None:
        self.shape, self.dtype = source.shape, source.dtype
        self._source, self._checksums, self._name = source, checksums, name
        self._is_outdated = is_outdated

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out` with rows.

        Raises DamagedCacheError if they are not what was written, CacheReplacedError if they are
        what was written later.
        """
        wrong = self._read(rows, out)
        if len(wrong) and self.forget(wrong):
            wrong = self._read(rows, out)
        if not len(wrong):
            return
        if self._is_outdated(int(wrong[0])):
            raise CacheReplacedError(
                f"row {wrong[0]} was made anew while it was read", where=self._name
            )
        raise DamagedCacheError(
            f"row {wrong[0]} is not what was written: its checksum differs ({len(wrong)} of "
            f"{len(rows)} rows read)",
            where=self._name,
        )

    def _read(self, rows: RowNumbers, out: Buffer) -> RowNumbers:
        """Fill `out`; which rows are not what was written."""
        try:
            self._source.read(rows, out)
        except DamagedCacheError:
            if not self.forget(rows):
                raise
            self._source.read(rows, out)
        is_wrong: npt.NDArray[np.bool_] = row_checksums(out) != self._checksums[rows]
        return rows[is_wrong]


def open_rows(
    location: Place | str,
    *,
    unbuffered: bool | None = None,
    reading: StoreReading = BY_RANGES,
    identity: ArrayIdentity | None = None,
) -> RowReader:
    """A reader for a Zarr array at a path or an address such as `s3://bucket/array`.

    unbuffered: bypass the page cache where possible; if not given, for arrays larger than
    memory, which would only push everything else out of it; reading: of one in a store, of which
    whole shards may be kept on a local disk if its identity is known.
    """
    place = place_of(location) if isinstance(location, str) else location
    with unwarned(), reported(place):
        array = zarr.open_array(**for_zarr(place), mode="r")
    layout = find_layout(array)
    if layout is None:
        return ZarrRows(array)
    if unbuffered is None:
        unbuffered = array.nbytes > physical_memory_bytes()
    source: ShardRows
    if isinstance(place, Path):
        source = DirectRows(array, layout, unbuffered=unbuffered)
    elif reading.local is None or identity is None:
        source = ObjectRows(array, layout, place, reading.in_flight)
    else:
        source = KeptRows(array, layout, place, reading, identity, unbuffered=unbuffered)
    return CompressedRows(source) if layout.is_compressed else source


def hold_small(
    sources: Sequence[RowReader], budget_bytes: int, shared: SharedMemory | None = None
) -> list[RowReader]:
    """The same arrays, the smallest of them held in memory as far as the budget goes.

    shared: with the other processes of the machine, which have to call this too.
    """
    sizes = [math.prod(source.shape) * source.dtype.itemsize for source in sources]
    held = list(sources)
    for number in sorted(range(len(sources)), key=sizes.__getitem__):
        budget_bytes -= sizes[number]
        if budget_bytes >= 0:
            held[number] = MemoryRows(sources[number], shared)
    return held


def physical_memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def aligned_buffer(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
    """Uninitialised memory on page boundaries, as unbuffered reads need it; huge pages if any."""
    count = math.prod(shape)
    size = max(count * np.dtype(dtype).itemsize, ALIGNMENT)
    # Private memory: only this kind can be backed by huge pages.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count).reshape(shape)
