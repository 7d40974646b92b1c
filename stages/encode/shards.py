"""Encoding the images of one shard: read, crop, encode, write."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache import ledger
from cache.arrays import open_rows
from cache.checksums import row_checksums
from cache.errors import DamagedCacheError, IncompleteCacheError, RepaCacheError, RowsChangedError
from cache.layout import Column
from cache.rows import RowTable, content_hash
from cache.writer import ShardWriter, write_shards
from stages.encode.columns import Arrays, Maker
from stages.encode.images import Pixels, centre_crop, decode
from stages.encode.sources import Source
from stages.progress import Advance

Work = Sequence[tuple[Column, Maker]]


class ImageError(RepaCacheError):
    """An image cannot be decoded."""


@dataclass(frozen=True)
class ShardEncoder:
    """Makes shards of columns from the images of a source.

    resolution: side of the crops in px; batch_size: images per forward pass.
    """

    source: Source
    rows: RowTable
    resolution: int
    batch_size: int
    pool: Executor

    def batches(self, rows: Iterable[int]) -> Iterator[Tensor]:
        """The crops of some rows, uint8 [B, 3, S, S] at a time."""
        crops = self.pool.map(self._crop, rows)
        while some := list(islice(crops, self.batch_size)):
            yield torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2)

    def encode(self, shard: int, work: Work, advance: Advance) -> None:
        """Make a shard of several columns, reading each image once."""
        columns = [column for column, _ in work]
        span = columns[0].shard_rows(shard)
        with write_shards(columns, shard, self.rows.digest(span)) as writers:
            for column in columns:
                self._keep_finished_rows(column, shard, writers[column.name])
            first = min(writer.written for writer in writers.values())
            advance(first, "")
            for images in self.batches(span[first:]):
                for column, maker in work:
                    fresh = images[max(writers[column.name].written - first, 0) :]
                    if len(fresh):
                        writers[column.name].write(maker.encode(fresh, column.constants))
                first += len(images)
                advance(len(images), "")

    def _keep_finished_rows(self, column: Column, shard: int, writer: ShardWriter) -> None:
        """Copy the rows that were encoded before images were added to the shard."""
        count = ledger.finished_rows(column, self.rows, shard)
        span = column.shard_rows(shard)[:count]
        try:
            for start in range(span.start, span.stop, self.batch_size):
                rows = np.arange(start, min(start + self.batch_size, span.stop))
                writer.write(_read_checked(column, rows))
        except (DamagedCacheError, IncompleteCacheError, OSError):
            # Whatever cannot be copied is encoded again.
            return

    def _crop(self, row: int) -> Pixels:
        """The crop of a row's image, whose file must be the one that was indexed."""
        key = str(self.rows.key[row])
        content = self.source.read(int(self.rows.source_index[row]))
        if content_hash(content) != self.rows.hash_of(row):
            raise RowsChangedError(f"{key} changed while the cache was built. Run the build again.")
        try:
            return centre_crop(decode(content), self.resolution)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{key} cannot be decoded: {error}. Mend or remove it.") from error


def _read_checked(column: Column, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Arrays:
    """Rows of all arrays of a column that may be unfinished, compared with their checksums."""
    arrays = {}
    for spec in (column.crc32c, *column.arrays):
        arrays[spec.name] = np.empty((len(rows), *spec.row_shape), spec.dtype)
        open_rows(column.folder / spec.name).read(rows, arrays[spec.name])
    checksums = arrays.pop(column.crc32c.name)
    for position, values in enumerate(arrays.values()):
        if (row_checksums(values) != checksums[:, position]).any():
            raise DamagedCacheError(f"{column.folder}: rows do not have their checksums.")
    return arrays
