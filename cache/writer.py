"""Writing one shard of a column: one owner, streamed, checksummed, recorded last."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt

from cache import ledger
from cache.files import atomic_file
from cache.layout import ArraySpec, Column

Rows = npt.NDArray[Any]


class ShardWriter:
    """Takes the rows of one shard in order, in batches of any size.

    Use as a context manager. Nothing is visible to readers before the block ends; then the
    files of all arrays are synced and renamed, and the shard enters the ledger. If the block
    raises, or rows are lacking at its end, nothing remains.
    """

    def __init__(self, column: Column, shard: int, rows_digest: bytes) -> None:
        self._column = column
        self._shard = shard
        self._rows_digest = rows_digest
        self._rows = len(column.shard_rows(shard))
        self._written = 0
        self._checksums = np.zeros((column.rows_per_shard, len(column.arrays)), np.uint32)
        self._files = ExitStack()
        self._streams: dict[str, BinaryIO] = {}

    def __enter__(self) -> "ShardWriter":
        for array in self._column.arrays:
            path = self._column.shard_path(array, self._shard)
            self._streams[array.name] = self._files.enter_context(atomic_file(path))
        return self

    def write(self, batch: Mapping[str, Rows]) -> None:
        """Append rows: for each array of the column, [B, *row_shape] in its dtype."""
        size = len(batch[self._column.arrays[0].name])
        if self._written + size > self._rows:
            raise ValueError(f"{self._column.name}: more than the {self._rows} rows of the shard")
        for position, array in enumerate(self._column.arrays):
            rows = np.ascontiguousarray(batch[array.name])
            expected = (size, *array.row_shape)
            if rows.shape != expected or rows.dtype != array.dtype:
                raise ValueError(
                    f"{self._column.name}/{array.name}: expected {array.dtype} {expected}, "
                    f"got {rows.dtype} {rows.shape}"
                )
            self._streams[array.name].write(rows.data)
            for row, values in enumerate(rows, start=self._written):
                self._checksums[row, position] = google_crc32c.value(values.tobytes())
        self._written += size

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._written != self._rows:
            error = ValueError(f"{self._column.name}: {self._written} of {self._rows} rows written")
        if error is not None:
            self._files.__exit__(type(error), error, traceback)
            if kind is None:
                raise error
            return
        self._finish()

    def _finish(self) -> None:
        """Indexes and padding, then files, then checksums, then the ledger."""
        with self._files:
            for array in self._column.arrays:
                padding = self._column.rows_per_shard - self._rows
                tail = (
                    shard_index(array, self._rows, padding)
                    if array.is_sharded
                    else np.full((padding, *array.row_shape), array.fill_value, array.dtype).data
                )
                self._streams[array.name].write(tail)
        with atomic_file(self._column.shard_path(self._column.crc32c, self._shard)) as stream:
            stream.write(self._checksums.data)
        ledger.record(self._column, self._shard, self._rows_digest)


def shard_index(array: ArraySpec, rows: int, absent: int) -> bytes:
    """The index at the end of a sharded file: offset and size of every inner chunk.

    Zarr v3 `sharding_indexed`: little-endian uint64 pairs, then their crc32c; absent chunks
    hold the largest number twice.
    """
    index = np.full((rows + absent, 2), np.iinfo(np.uint64).max, "<u8")
    index[:rows, 0] = np.arange(rows, dtype=np.uint64) * np.uint64(array.row_bytes)
    index[:rows, 1] = array.row_bytes
    content = index.tobytes()
    checksum: int = google_crc32c.value(content)
    return content + checksum.to_bytes(4, "little")


@contextmanager
def write_shards(
    columns: list[Column], shard: int, rows_digest: bytes
) -> Iterator[dict[str, ShardWriter]]:
    """Writers for the same shard of several columns, by column name."""
    with ExitStack() as stack:
        yield {
            column.name: stack.enter_context(ShardWriter(column, shard, rows_digest))
            for column in columns
        }
