"""Rows of an array in a store, of which whole shards are kept on a local disk.

What is there is read from there, as a local cache is; all else by ranges, as if nothing was kept.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr

from cache.errors import DamagedCacheError
from cache.file_layout import Layout
from cache.files import HeldFolder
from cache.shard_files import Buffer, RowNumbers, Shard, ShardFile, open_files_limit
from cache.storage import decompress
from cache.stores.local_shards import KeptShard, LocalShards, Wanted
from cache.stores.object_rows import ObjectRows, ShardObject
from cache.stores.places import IN_FLIGHT, StorePath

# Of a shard, that has to be needed for another one to make room.
WORTH = 0.5


@dataclass(frozen=True)
class ArrayIdentity:
    """By what shards of an array are known wherever they lie.

    names: of those that are finished, by their numbers; checksums: of all rows, uint32 [N].
    """

    names: Mapping[int, str]
    checksums: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class StoreReading:
    """How arrays in stores are read.

    in_flight: requests of a process at the same time; local: where whole shards are kept, if
    anywhere.
    """

    in_flight: int = IN_FLIGHT
    local: LocalShards | None = None


BY_RANGES = StoreReading()


class KeptRows(ObjectRows):
    """Reads rows from shards on the local disk, or else from the store.

    identity: of the array; unbuffered: bypass the page cache where rows and buffers are aligned.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        layout: Layout,
        path: StorePath,
        reading: StoreReading,
        identity: ArrayIdentity,
        *,
        unbuffered: bool,
    ) -> None:
        super().__init__(array, layout, path, reading.in_flight, unbuffered=unbuffered)
        assert reading.local is not None, "there is no folder"
        self._local, self._identity = reading.local, identity
        self._kept: dict[int, KeptShard] = {}
        self._expected: set[int] = set()
        self._changing = threading.Lock()
        self._local.own(identity.names.values())

    def expect(self, rows: RowNumbers) -> None:
        """Be told of the rows that will be read, the next first; shards of others are let go."""
        numbers, places, counts = np.unique(
            rows // self._layout.rows_per_file, return_index=True, return_counts=True
        )
        soonest = np.argsort(places)[: open_files_limit()]
        coming = [
            (number, int(places[at]), int(counts[at]))
            for at, number in zip(soonest, numbers[soonest].tolist(), strict=True)
            if number in self._identity.names
        ]
        with self._changing:
            self._expected = {number for number, _, _ in coming}
            self._kept = {n: one for n, one in self._kept.items() if n in self._expected}
        missing = [one for one in coming if not self._open_kept(one[0])]
        self._local.want(self, [self._wanted(*one) for one in missing])

    def forget(self, rows: RowNumbers) -> bool:
        """Remove the shards on the local disk that hold some rows; whether there were any."""
        numbers = np.unique(rows // self._layout.rows_per_file).tolist()
        with self._changing:
            dropped = [number for number in numbers if self._kept.pop(number, None)]
        for number in dropped:
            self._local.remove(self._identity.names[number])
        return bool(dropped)

    def file(self, row: int) -> tuple[Shard, int]:
        number, position = divmod(row, self._layout.rows_per_file)
        return self._kept.get(number) or self._file(number), position

    def read(self, rows: RowNumbers, out: Buffer) -> None:
        """Fill `out`, C-contiguous [B, ...], with rows [B] in any order."""
        if not out.size:
            return
        view, size, far = out.reshape(-1).view(np.uint8), self._layout.row_bytes, []
        for first, last, is_near in self._spans(rows):
            if not is_near or not self._is_read(rows[first:last], view[first * size : last * size]):
                far.append(np.arange(first, last))
        if far:
            places = np.concatenate(far)
            self._read_ranges(rows[places], places, view)

    def chunks(self, rows: RowNumbers) -> Iterable[tuple[Shard, bytes]]:
        found: list[tuple[Shard, bytes]] = []
        for first, last, is_near in self._spans(rows):
            if is_near:
                files = map(self.file, rows[first:last].tolist())
                found += ((file, file.chunk(position)) for file, position in files)
            else:
                found += super().chunks(rows[first:last])
        return found

    def _spans(self, rows: RowNumbers) -> list[tuple[int, int, bool]]:
        """Between which places rows are all on the local disk, or all not."""
        kept = self._kept
        is_near = [number in kept for number in (rows // self._layout.rows_per_file).tolist()]
        if all(is_near):
            return [(0, len(rows), True)]
        bounds = [0, *(np.flatnonzero(np.diff(is_near)) + 1).tolist(), len(rows)]
        return [(first, last, is_near[first]) for first, last in pairwise(bounds)]

    def _is_read(self, rows: RowNumbers, view: Buffer) -> bool:
        """Read rows from the local disk, if it gives them."""
        try:
            self._read_files(rows, view)
        except (OSError, DamagedCacheError):
            self.forget(rows)
            return False
        return True

    def _open_kept(self, number: int) -> bool:
        """Have a shard that is on the local disk; whether it is."""
        if number in self._kept:
            return True
        file = self._local.open(self._identity.names[number], self._layout)
        with self._changing:
            if file is not None and number in self._expected:
                self._kept[number] = file
        return file is not None

    def _wanted(self, number: int, place: int, count: int) -> Wanted:
        return Wanted(
            name=self._identity.names[number],
            place=place,
            is_worth_room=count * self._local.readers >= WORTH * len(self._rows_of(number)),
            source=partial(self._source, number),
            is_whole=partial(self._is_whole, number),
            arrived=partial(self._open_kept, number),
        )

    def _source(self, number: int) -> ShardObject:
        file = self._file(number)
        assert isinstance(file, ShardObject)
        return file

    def _rows_of(self, number: int) -> range:
        """The rows of a shard."""
        first = number * self._layout.rows_per_file
        return range(first, min(first + self._layout.rows_per_file, self.shape[0]))

    def _is_whole(self, number: int, path: Path) -> bool:
        """Whether a file has all rows of a shard, by their checksums."""
        buffer = np.empty(self._layout.row_bytes, np.uint8).reshape(-1).view(self.dtype)
        try:
            file = ShardFile(HeldFolder(path.parent), path.name, self._layout)
            for position, row in enumerate(self._rows_of(number)):
                content: Any = file.chunk(position)
                if self._layout.is_compressed:
                    decompress(content, buffer)
                    content = buffer
                if google_crc32c.value(content) != self._identity.checksums[row]:
                    return False
        except (DamagedCacheError, ValueError):
            return False
        return True
