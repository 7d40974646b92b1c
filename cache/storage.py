"""How tensors are stored: as half precision, as 8-bit codes with scales, or as they are.

To add a way, write a class with these methods and name it in `FLOAT_STORAGES`. The same code
works on numpy arrays and on tensors of any device. B rows, T tokens, D features.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from array_api_compat import array_namespace

# A numpy array or a tensor.
Array: TypeAlias = Any
Arrays = Mapping[str, Array]

CODES = 127
# Of a channel that is always zero, and of a token that is: as small as float16 counts exactly.
SMALLEST = 2.0**-14
# Rounds a token's scale up by more than float16 can round it down: no code exceeds 127.
MARGIN = 1 + 2.0**-10


class Storage(Protocol):
    """One way to store a tensor [B, ...] as arrays of a column, and to get it back.

    measure: the column's constants, called `constants`, from a sample of `sample_rows` rows;
    encode: the arrays of some rows, the first of them under the tensor's `name`; decode: the
    tensor, float32; directions: the tensor up to a positive factor per token, from its first
    array alone, which is all that a cosine sees; beside: the other arrays; is_compressed: whether
    the first one is, on disk.
    """

    is_compressed: bool
    beside: tuple[str, ...]
    sample_rows: int
    constants: tuple[str, ...]

    def measure(self, values: Array) -> Arrays: ...

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays: ...

    def decode(self, name: str, arrays: Arrays, constants: Arrays) -> Array: ...

    def directions(self, stored: Array, constants: Arrays) -> Array: ...


class _OneArray:
    beside: tuple[str, ...] = ()
    sample_rows: int = 0
    constants: tuple[str, ...] = ()

    def measure(self, values: Array) -> Arrays:  # noqa: ARG002
        return {}


class Float16(_OneArray):
    """Half precision: 11 bits of precision, up to 65504."""

    is_compressed: bool = False

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:  # noqa: ARG002
        xp = array_namespace(values)
        return {name: xp.astype(values, xp.float16)}

    def decode(self, name: str, arrays: Arrays, constants: Arrays) -> Array:
        return self.directions(arrays[name], constants)

    def directions(self, stored: Array, constants: Arrays) -> Array:  # noqa: ARG002
        xp = array_namespace(stored)
        return xp.astype(stored, xp.float32)


class Int8:
    """8-bit codes of tokens [B, T, D]: a value is code x token_scale x channel_scale.

    The channel scales, float32 [D], even out features of very different size; they are measured
    once. The token scales, float16 [B, T], are stored with each row. A value comes back within
    half a step, 0.5 x token_scale x channel_scale.
    """

    is_compressed: bool = False
    beside: tuple[str, ...] = ("token_scale",)
    # Images lie in random order: these have some 65,000 tokens of a usual encoder.
    sample_rows: int = 256
    constants: tuple[str, ...] = ("channel_scale",)

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
        return self.directions(arrays[name], constants) * scale

    def directions(self, stored: Array, constants: Arrays) -> Array:
        xp = array_namespace(stored)
        return xp.astype(stored, xp.float32) * constants["channel_scale"]


class Exact(_OneArray):
    """Bytes as they are, which the disk holds compressed without loss."""

    is_compressed: bool = True

    def encode(self, name: str, values: Array, constants: Arrays) -> Arrays:  # noqa: ARG002
        return {name: values}

    def decode(self, name: str, arrays: Arrays, constants: Arrays) -> Array:  # noqa: ARG002
        return arrays[name]

    def directions(self, stored: Array, constants: Arrays) -> Array:  # noqa: ARG002
        return stored


# The names that `encoders.NAME.storage` takes.
FLOAT_STORAGES: Mapping[str, Storage] = {"float16": Float16(), "int8": Int8()}
STORAGES: Mapping[str, Storage] = {**FLOAT_STORAGES, "uint8": Exact()}
