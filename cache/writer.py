"""Writing one shard of a column: one owner, streamed, checksummed, recorded last."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import BinaryIO

import google_crc32c
import numpy as np

from cache import ledger
from cache.errors import CacheWriteError
from cache.files import atomic_file, remove_leftovers, start_writeback
from cache.layout import LEDGER, ArraySpec, Column, Rows
from cache.storage import compress, finite_rows, row_checksums


class ShardWriter:
    """Takes the rows of one shard in order, in batches of any size.

    Use as a context manager, by the only process that makes this shard. Nothing is visible to
    readers before the block ends; then the files of all arrays are synced and renamed, and the
    shard enters the ledger. If the block raises, or rows are lacking at its end, nothing
    remains.

    images: the digest of the shard's rows.
    """

    def __init__(self, column: Column, shard: int, images: bytes) -> None:
        self._column = column
        self._shard = shard
        self._images = images
        self._rows = len(column.shard_rows(shard))
        self._written = 0
        self._checksums = np.zeros((column.rows_per_shard, len(column.arrays)), np.uint32)
        self._sizes: dict[str, list[int]] = {array.name: [] for array in column.arrays}
        self._files = ExitStack()
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> "ShardWriter":
        with self._reported(), ExitStack() as files:
            for array in (*self._column.arrays, self._column.crc32c, LEDGER):
                folder = self._column.folder / array.name
                remove_leftovers(folder, f"{array.shard_key(self._shard)}.*")
            for array in self._column.arrays:
                path = self._column.shard_path(array, self._shard)
                self._streams[array.name] = files.enter_context(atomic_file(path))
            self._files = files.pop_all()
        return self

    @property
    def written(self) -> int:
        return self._written

    def write(self, batch: Mapping[str, Rows]) -> None:
        """Append rows: for each array of the column, [B, *row_shape] in its dtype.

        Raises CacheWriteError for values that are no numbers, or that cannot be stored.
        """
        size = len(batch[self._column.arrays[0].name])
        if self._written + size > self._rows:
            raise ValueError(f"{self._column.name}: more than the {self._rows} rows of the shard")
        for position, array in enumerate(self._column.arrays):
            rows = np.ascontiguousarray(batch[array.name])
            self._check(array, rows, size)
            with self._reported():
                self._append(array, rows)
            self._checksums[self._written : self._written + size, position] = row_checksums(rows)
        self._written += size

    def _append(self, array: ArraySpec, rows: Rows) -> None:
        stream = self._streams[array.name]
        start = stream.tell()
        if array.is_compressed:
            chunks = [compress(row) for row in rows]
            stream.writelines(chunks)
            self._sizes[array.name] += map(len, chunks)
        else:
            stream.write(rows.data)
            self._sizes[array.name] += [array.row_bytes] * len(rows)
        start_writeback(stream, start, stream.tell() - start)

    def _check(self, array: ArraySpec, rows: Rows, size: int) -> None:
        name = f"{self._column.name}/{array.name}"
        expected = (size, *array.row_shape)
        if rows.shape != expected or rows.dtype != array.dtype:
            raise ValueError(
                f"{name}: expected {array.dtype} {expected}, got {rows.dtype} {rows.shape}"
            )
        if not (finite := finite_rows(rows)).all():
            start = self._column.shard_rows(self._shard).start + self._written
            raise CacheWriteError(
                f"row {start + int(np.argmin(finite))} holds NaN, infinity or a value beyond "
                f"{array.dtype}",
                where=name,
                remedy="Look at the image and at the weights of its network.",
            )

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CacheWriteError(
                f"shard {self._shard} cannot be written: {error.strerror or error}",
                where=self._column.folder,
                remedy=(
                    "Finished shards are kept; remove the cause and run the same command again."
                ),
            ) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._written != self._rows:
            error = ValueError(f"{self._column.name}: {self._written} of {self._rows} rows written")
        if error is not None:
            with self._reported():
                self._files.__exit__(type(error), error, traceback)
            if kind is None:
                raise error
            return
        with self._reported():
            self._finish()

    def _finish(self) -> None:
        """Indexes and padding, then files, then checksums, then the ledger."""
        column, shard = self._column, self._shard
        with self._files:
            for array in column.arrays:
                tail = shard_tail(column, array, self._sizes[array.name])
                self._streams[array.name].write(tail)
        with atomic_file(column.shard_path(column.crc32c, shard)) as stream:
            stream.write(self._checksums.data)
        ledger.record(column, shard, self._images)


def shard_tail(column: Column, array: ArraySpec, sizes: Sequence[int]) -> bytes:
    """What follows the rows, of these sizes in bytes, in a shard's file.

    Dense: rows of the fill value, up to a full chunk. Sharded: the index of Zarr v3's
    `sharding_indexed`: offset and size of every inner chunk as little-endian uint64, absent
    ones the largest number twice, then the crc32c of all that.
    """
    rows = len(sizes)
    if not array.is_sharded:
        padding = (column.rows_per_shard - rows, *array.row_shape)
        return np.full(padding, array.fill_value, array.dtype).tobytes()
    index = np.full((column.rows_per_shard, 2), np.iinfo(np.uint64).max, "<u8")
    index[:rows, 0] = np.cumsum([0, *sizes[:-1]])
    index[:rows, 1] = sizes
    content = index.tobytes()
    checksum: int = google_crc32c.value(content)
    return content + checksum.to_bytes(4, "little")
