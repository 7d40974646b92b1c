"""The folders, arrays and attributes of a cache: an ordinary Zarr v3 hierarchy.

    NAME.zarr/                    attributes: format_version, rows, rows_per_shard,
                                  permutation_seed
      rows/                       label, source_index, key, content_hash
      latents/<vae>/              a column: attributes recipe, fingerprint, provenance
        moments                   float16 [N, 2C, h, w]
        crc32c                    uint32 [N, arrays]: one checksum per row and array
        ledger                    uint8 [shards, 32]: which shards are finished
      features/<encoder>/         a column: tokens, class_token ..., crc32c, ledger

All arrays of a column are cut into shards of `rows_per_shard` rows; one file holds one
shard of one array. Large rows are inner chunks of a sharded array, so that any reader can
fetch one of them; small rows lie one after another in a plain chunk. Nothing is compressed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.errors import NotACacheError, StaleCacheError
from cache.files import atomic_folder
from cache.recipe import Recipe, differences, fingerprint

FORMAT_VERSION = 1
# Rows below a page are read in bulk, not one by one; an index entry each would not pay.
SHARDED_ROW_BYTES = 4096
DIGEST_BYTES = 32


@dataclass(frozen=True)
class ArraySpec:
    """One array of a column: `row_shape` is its shape without the leading row axis."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def is_sharded(self) -> bool:
        """Whether each row is an inner chunk of its own."""
        return self.row_bytes >= SHARDED_ROW_BYTES

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


LEDGER = ArraySpec("ledger", "uint8", (DIGEST_BYTES,))


@dataclass(frozen=True)
class Column:
    """A group of arrays that one recipe made: what a shard is written to and read from.

    folder: the Zarr group; rows: N; recipe: everything that decides a byte.
    """

    name: str
    folder: Path
    arrays: tuple[ArraySpec, ...]
    recipe: Recipe
    rows: int
    rows_per_shard: int

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
        """The fingerprint of the recipe."""
        return fingerprint(self.recipe)

    @property
    def crc32c(self) -> ArraySpec:
        """The array of checksums: one column per data array, in their order."""
        return ArraySpec("crc32c", "uint32", (len(self.arrays),))

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def shard_path(self, array: ArraySpec, shard: int) -> Path:
        """The file that holds a shard of one array."""
        return self.folder / array.name / array.shard_key(shard)


def create_array(group: zarr.Group, spec: ArraySpec, rows: int, rows_per_shard: int) -> None:
    """Write the metadata of an array; shards are files that come later."""
    shard_shape = (rows_per_shard, *spec.row_shape)
    group.create_array(
        spec.name,
        shape=(rows, *spec.row_shape),
        dtype=spec.dtype,
        chunks=(1, *spec.row_shape) if spec.is_sharded else shard_shape,
        shards=shard_shape if spec.is_sharded else None,
        compressors=None,
        filters=None,
        fill_value=spec.fill_value,
        chunk_key_encoding={"name": "default", "separator": "."},
    )


def create_column(column: Column, provenance: Mapping[str, Any]) -> None:
    """Write a column's metadata in one step: it is there whole or not at all.

    provenance: what does not decide a byte but helps a reader (model names, versions, time).
    """
    with atomic_folder(column.folder) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        for array in (*column.arrays, column.crc32c):
            create_array(group, array, column.rows, column.rows_per_shard)
        create_array(group, LEDGER, column.shards, 1)
        group.attrs.update(
            {
                "arrays": [array.name for array in column.arrays],
                "recipe": dict(column.recipe),
                "fingerprint": column.fingerprint,
                "provenance": dict(provenance),
            }
        )


def create_root(path: Path, rows: int, rows_per_shard: int, permutation_seed: int) -> zarr.Group:
    """Write the root group of a new cache at `path`, with empty families of columns."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update(
        {
            "format_version": FORMAT_VERSION,
            "rows": rows,
            "rows_per_shard": rows_per_shard,
            "permutation_seed": permutation_seed,
        }
    )
    for family in ("latents", "features"):
        root.create_group(family)
    return root


def root_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a cache's root group.

    Raises NotACacheError if `path` is not a cache of this format version.
    """
    if not path.exists():
        raise NotACacheError(f"There is no cache at {path}. Run `repa-cache build` first.")
    if not (path / "zarr.json").is_file():
        raise NotACacheError(f"{path} is not a cache: it has no zarr.json. Choose another path.")
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise NotACacheError(
            f"{path} has cache format {version!r}; this version of repa-cache reads and writes "
            f"format {FORMAT_VERSION}. Use another path, or the version that wrote it."
        )
    return attributes


def has_column(path: Path, name: str) -> bool:
    """Whether the cache at `path` has a column of this name, finished or not."""
    return (path / name / "zarr.json").is_file()


def read_column(path: Path, name: str) -> Column:
    """The column of this name, from its metadata."""
    root = root_attributes(path)
    group = zarr.open_group(path / name, mode="r")
    attributes: dict[str, Any] = dict(group.attrs.asdict())
    arrays = [group[array_name] for array_name in attributes["arrays"]]
    return Column(
        name=name,
        folder=path / name,
        arrays=tuple(
            ArraySpec(array.basename, str(array.dtype), array.shape[1:])
            for array in arrays
            if isinstance(array, zarr.Array)
        ),
        recipe=attributes["recipe"],
        rows=root["rows"],
        rows_per_shard=root["rows_per_shard"],
    )


def check_recipe(column: Column, wanted: Recipe) -> None:
    """Raise StaleCacheError, naming the fields that differ, unless the recipes are equal."""
    if changed := differences(column.recipe, wanted):
        raise StaleCacheError(
            f"{column.folder} was built by another recipe ({'; '.join(changed)}). "
            "Restore these settings, or choose another cache.path."
        )
