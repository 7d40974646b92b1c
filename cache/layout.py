"""The folders, arrays and attributes of a cache: an ordinary Zarr v3 hierarchy.

    NAME.zarr/                    attributes: format_version, rows_per_shard, permutation_seed
      rows/                       key, label, source_index, content_hash, stamp
      latents/<vae>/              a column: attributes recipe, fingerprint, provenance
        moments                   float16 [N, 2C, h, w], or latents [N, C, h, w]
        valid                     uint8 [N]: 0 where the image could not be decoded
        crc32c                    uint32 [N, arrays]: one checksum per row and array
        ledger                    uint8 [shards, 64]: which shards are finished
      features/<encoder>/         a column: tokens, valid, crc32c, ledger
        class_token               float16 [N, D], where the encoder has one
        token_scale               float16 [N, T], with int8 tokens only
        channel_scale             float32 [D], likewise; a constant of the column
      features/<components>/      a column: tokens, valid, crc32c, ledger; made of another column's
        tokens                    float16 [N, T, R]
        mean, components, ...     float32 [D], [R, D]; constants, by which they are made
      pixels/crops/               a column: pixels, valid, crc32c, ledger
        pixels                    uint8 [N, 3, S, S], compressed
      .../<column>.flipped/       the same of the mirrored images

All arrays of a column are cut into shards of `rows_per_shard` rows; one file holds one
shard of one array. Large rows are inner chunks of a sharded array, so that any reader can
fetch one of them; small rows lie one after another in a plain chunk. Pixels alone are compressed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cache.recipe import Recipe, fingerprint
from cache.stores.places import Place

# Rows below a page are read in bulk, not one by one; an index entry each would not pay.
SHARDED_ROW_BYTES = 4096
LEDGER_BYTES = 64
ROWS = "rows"
FAMILIES = ("latents", "features", "pixels")
# How the names of columns of VAEs and of encoders begin.
LATENTS, FEATURES = "latents/", "features/"
PIXELS = "pixels/crops"
FLIPPED = ".flipped"

Rows = np.ndarray
Constants = Mapping[str, Rows]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a column: `row_shape` is its shape without the leading row axis."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    is_compressed: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, before compression."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def is_sharded(self) -> bool:
        """Whether each row is an inner chunk of its own."""
        return self.is_compressed or self.row_bytes >= SHARDED_ROW_BYTES

    @property
    def fill_value(self) -> float | int:
        """What an absent chunk reads as: nothing that real data would hold."""
        kind = np.dtype(self.dtype).kind
        if kind == "f":
            return math.nan
        return -128 if kind == "i" else 0

    def shard_key(self, shard: int) -> str:
        """The file of a shard inside the array's folder."""
        return ".".join(["c", str(shard)] + ["0"] * len(self.row_shape))


LEDGER = ArraySpec("ledger", "uint8", (LEDGER_BYTES,))
# Part of every column.
VALID = ArraySpec("valid", "uint8", ())


@dataclass(frozen=True)
class Column:
    """A group of arrays that one recipe made: what a shard is written to and read from.

    folder: the Zarr group; rows: N; recipe: everything that decides a byte; constants: small
    arrays that all rows share.
    """

    name: str
    folder: Place
    arrays: tuple[ArraySpec, ...]
    recipe: Recipe
    rows: int
    rows_per_shard: int
    constants: Constants = field(default_factory=dict)

    @property
    def cache(self) -> Place:
        """The cache that it belongs to."""
        return self.folder.parents[self.name.count("/")]

    @property
    def title(self) -> str:
        """Its name within its family: of an encoder or a VAE."""
        return self.name.rpartition("/")[2]

    @property
    def shards(self) -> int:
        """Number of shards, the last of which may be shorter."""
        return math.ceil(self.rows / self.rows_per_shard)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays, checksums not counted."""
        return sum(array.row_bytes for array in self.arrays)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    @property
    def crc32c(self) -> ArraySpec:
        """The array of checksums: one column per data array, in their order."""
        return ArraySpec("crc32c", "uint32", (len(self.arrays),))

    def array(self, name: str) -> ArraySpec:
        return next(array for array in self.arrays if array.name == name)

    def shard_rows(self, shard: int) -> range:
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def shard_path(self, array: ArraySpec, shard: int) -> Place:
        """The file that holds a shard of one array."""
        return self.folder / array.name / array.shard_key(shard)

    @property
    def index_bytes(self) -> int:
        """The size of the index of a sharded array's file."""
        return 16 * self.rows_per_shard + 4

    def shard_bytes(self, array: ArraySpec, shard: int) -> int:
        """The size of that file, the most it can be if it is compressed.

        Dense shards are padded, sharded ones have an index.
        """
        return self.bytes_of(array, len(self.shard_rows(shard)), 1)

    def bytes_of(self, array: ArraySpec, rows: int, shards: int) -> int:
        """The size of so many such files that hold so many rows together."""
        if array.is_sharded:
            return rows * array.row_bytes + shards * self.index_bytes
        return shards * self.rows_per_shard * array.row_bytes
