"""How the rows of a Zarr array lie in its files, from the array's metadata."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.chunk_grids import RegularChunkGrid
from zarr.storage import LocalStore, ObjectStore

from cache.storage import is_of_pixels

# What devices and file systems ask of offsets, sizes and addresses of unbuffered reads.
ALIGNMENT = 4096
INDEX_ENTRY_BYTES = 16


@dataclass(frozen=True)
class Layout:
    """How the rows of an array lie in files: each holds chunks, each of which holds rows.

    index: where a file's index is, if it has one; is_compressed: whether each row is a chunk as
    `cache.storage` makes it.
    """

    rows_per_file: int
    rows_per_chunk: int
    row_bytes: int
    index: Literal["start", "end"] | None
    has_checksum: bool
    is_compressed: bool = False

    @property
    def is_aligned(self) -> bool:
        """Whether unbuffered reads of whole rows are possible."""
        is_in_place = not self.is_compressed and self.index != "start"
        return is_in_place and self.row_bytes % ALIGNMENT == 0

    @property
    def index_bytes(self) -> int:
        """Size of a file's index, with its checksum."""
        chunks = self.rows_per_file // self.rows_per_chunk
        return chunks * INDEX_ENTRY_BYTES + 4 * self.has_checksum if self.index else 0


def find_layout(array: zarr.Array[Any]) -> Layout | None:
    """The layout of an array whose rows can be read one by one from its files, or None."""
    metadata = array.metadata
    if (
        not isinstance(array.store, LocalStore | ObjectStore)
        or metadata.zarr_format != 3
        or not array.ndim
    ):
        return None
    grid, codecs = metadata.chunk_grid, metadata.codecs
    if not isinstance(grid, RegularChunkGrid) or array.dtype.kind not in "fiu":
        return None
    file_shape = chunk_shape = grid.chunk_shape
    index: Literal["start", "end"] | None = None
    index_codecs: tuple[Any, ...] = ()
    if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec):
        sharding = codecs[0]
        chunk_shape, codecs = sharding.chunk_shape, sharding.codecs
        index_codecs, index = sharding.index_codecs, sharding.index_location.value
    is_whole = file_shape[1:] == chunk_shape[1:] == array.shape[1:]
    is_plain = _is_little_endian(codecs, array.dtype.itemsize)
    is_single = chunk_shape[0] == 1 and bool(index)
    is_compressed = is_single and _is_zstd(codecs, array.dtype)
    if not is_whole or not (is_plain or is_compressed):
        return None
    if index and not _is_plain_index(index_codecs):
        return None
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    has_checksum = len(index_codecs) == 2
    return Layout(file_shape[0], chunk_shape[0], row_bytes, index, has_checksum, is_compressed)


def _is_little_endian(codecs: tuple[Any, ...], item_bytes: int) -> bool:
    if len(codecs) != 1 or not isinstance(codecs[0], BytesCodec):
        return False
    endian = codecs[0].endian
    return item_bytes == 1 or (endian is not None and endian.value == "little")


def _is_zstd(codecs: tuple[Any, ...], dtype: np.dtype[Any]) -> bool:
    """Whether chunks are as `cache.storage.compress` makes them."""
    described = [codec.to_dict() for codec in codecs]
    if is_of_pixels(dtype):
        first = described.pop(0)
        if (first["name"], first.get("configuration")) != ("numcodecs.delta", {"dtype": "|u1"}):
            return False
    is_little = _is_little_endian(codecs[-3:-2], dtype.itemsize)
    return [codec["name"] for codec in described] == ["bytes", "zstd", "crc32c"] and is_little


def _is_plain_index(codecs: tuple[Any, ...]) -> bool:
    is_checked = len(codecs) == 2 and isinstance(codecs[1], Crc32cCodec)
    return _is_little_endian(codecs[:1], 8) and (len(codecs) == 1 or is_checked)
