"""How tensors are stored and checked: half precision, 8-bit codes, pixels without loss.

A row is an inner chunk with standard Zarr codecs, so that zarr-python reads it too. Compressed are
pixels, where differences save a sixth of what Zstandard alone leaves, and tokens of captions, of
which most are padding. Zstandard's fastest level is the best.

To add a way, write a `Storage` and name it in `FLOAT_STORAGES`. The same code
works on numpy arrays and on tensors of any device. B rows, T tokens, D features.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace
from numcodecs import Delta, Zstd

if TYPE_CHECKING:
    from cache.shard_files import Buffer

# A numpy array or a tensor.
Array: TypeAlias = Any
Arrays = Mapping[str, Array]

CODES = 127
# Of a channel that is always zero, and of a token that is: as small as float16 counts exactly.
SMALLEST = 2.0**-14
# Rounds a token's scale up by more than float16 can round it down: no code exceeds 127.
MARGIN = 1 + 2.0**-10
# Of Zstandard.
LEVEL = 1
CHECKSUM_BYTES = 4


def row_checksums(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The crc32c of the bytes of each row, [B], of a C-contiguous array [B, ...]."""
    return np.array([google_crc32c.value(row) for row in rows], np.uint32)


def finite_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows, [B], of an array [B, ...] hold neither NaN nor infinity."""
    if rows.dtype.kind != "f":
        return np.ones(len(rows), np.bool_)
    flat = rows.reshape(len(rows), -1)
    finite: npt.NDArray[np.bool_]
    if rows.dtype == np.float16:
        # By their bits, numbers lie below the infinities of either sign: many times faster than
        # asking half-precision numbers, and without memory for an answer each.
        bits = flat.view(np.uint16)
        finite = (bits.view(np.int16).max(axis=1) < 0x7C00) & (bits.max(axis=1) < 0xFC00)
    else:
        finite = np.isfinite(flat).all(axis=1)
    return finite


def codec_arguments(dtype: str) -> dict[str, Any]:
    """The codecs, for `zarr.Group.create_array` of an array of a type."""
    # Names of storages are checked without zarr.
    from zarr.codecs import Crc32cCodec, ZstdCodec, numcodecs

    return {
        "filters": (numcodecs.Delta(dtype="|u1"),) if is_of_pixels(dtype) else None,
        "compressors": (ZstdCodec(level=LEVEL), Crc32cCodec()),
    }


def is_of_pixels(dtype: npt.DTypeLike) -> bool:
    """Whether an array of this type, if it is compressed, holds differences."""
    return np.dtype(dtype) == np.uint8


def compress(row: "Buffer") -> bytes:
    """The inner chunk that holds a row."""
    plain = row.reshape(-1)
    if is_of_pixels(row.dtype):
        plain = Delta("u1").encode(plain)
    content: bytes = Zstd(LEVEL).encode(plain)
    checksum: int = google_crc32c.value(content)
    return content + checksum.to_bytes(CHECKSUM_BYTES, "little")


def decompress(chunk: bytes, out: "Buffer") -> None:
    """Fill `out`, a row, from its inner chunk. Raises ValueError if the chunk is damaged."""
    content, checksum = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum differs")
    try:
        if is_of_pixels(out.dtype):
            Delta("u1").decode(np.frombuffer(Zstd().decode(content), np.uint8), out.reshape(-1))
        else:
            Zstd().decode(content, out.reshape(-1))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


@contextmanager
def unwarned() -> Iterator[None]:
    """Without zarr's warning that other implementations may not know one of these codecs."""
    from zarr.errors import ZarrUserWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs", ZarrUserWarning)
        yield


class Storage(ABC):
    """One way to store a tensor [B, ...] as arrays of a column, and to get it back.

    is_compressed: whether its first array is, on disk; beside: the names of the others;
    sample_rows: how many rows `measure` takes; constants: the names of what it gives.
    """

    is_compressed: bool = False
    beside: tuple[str, ...] = ()
    sample_rows: int = 0
    constants: tuple[str, ...] = ()

    def measure(self, values: Array) -> Arrays:  # noqa: ARG002
        """The column's constants, from a sample of its rows."""
        return {}

    @abstractmethod
    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:
        """The arrays of some rows, the first of them under the tensor's name."""

    def decode(self, name: str, arrays: Arrays, constants: Arrays) -> Array:
        """The tensor, float32."""
        return self.directions(arrays[name], constants)

    @abstractmethod
    def directions(self, stored: Array, constants: Arrays) -> Array:
        """The tensor up to a positive factor per token: all that a cosine sees.

        stored: its first array alone.
        """


class Float16(Storage):
    """Half precision: 11 bits of precision, up to 65504."""

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:  # noqa: ARG002
        xp = array_namespace(values)
        return {name: xp.astype(values, xp.float16)}

    def directions(self, stored: Array, constants: Arrays) -> Array:  # noqa: ARG002
        xp = array_namespace(stored)
        return xp.astype(stored, xp.float32)


class Int8(Storage):
    """8-bit codes of tokens [B, T, D]: a value is code x token_scale x channel_scale.

    The channel scales, float32 [D], even out features of very different size; they are measured
    once. The token scales, float16 [B, T], are stored with each row. A value comes back within
    half a step, 0.5 x token_scale x channel_scale.
    """

    beside = ("token_scale",)
    # Images lie in random order: these have some 65,000 tokens of a usual encoder.
    sample_rows = 256
    constants = ("channel_scale",)

    def measure(self, values: Array) -> Arrays:
        """The root mean square of every channel."""
        xp = array_namespace(values)
        squares = xp.mean(xp.astype(values, xp.float64) ** 2, axis=(0, 1))
        scale = xp.astype(xp.sqrt(squares), xp.float32)
        return {"channel_scale": xp.where(scale < SMALLEST, xp.ones_like(scale), scale)}

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:
        xp = array_namespace(values)
        even = values / constants["channel_scale"]
        largest = xp.max(xp.abs(even), axis=-1)
        scale = xp.astype(xp.clip(largest / CODES * MARGIN, SMALLEST, None), xp.float16)
        codes = xp.round(even / xp.astype(scale, xp.float32)[..., None])
        return {name: xp.astype(codes, xp.int8), "token_scale": scale}

    def decode(self, name: str, arrays: Arrays, constants: Arrays) -> Array:
        xp = array_namespace(arrays[name])
        scale = xp.astype(arrays["token_scale"], xp.float32)[..., None]
        return super().decode(name, arrays, constants) * scale

    def directions(self, stored: Array, constants: Arrays) -> Array:
        xp = array_namespace(stored)
        return xp.astype(stored, xp.float32) * constants["channel_scale"]


class Exact(Storage):
    """Bytes as they are, which the disk holds compressed without loss."""

    is_compressed = True

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:  # noqa: ARG002
        return {name: values}

    def directions(self, stored: Array, constants: Arrays) -> Array:  # noqa: ARG002
        return stored


# The names that `encoders.NAME.storage` takes.
FLOAT_STORAGES: Mapping[str, Storage] = {"float16": Float16(), "int8": Int8()}
STORAGES: Mapping[str, Storage] = {**FLOAT_STORAGES, "uint8": Exact()}
