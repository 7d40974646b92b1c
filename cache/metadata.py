"""Reading and writing what describes a cache on disk: its root, its columns, their arrays."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.errors import DamagedCacheError, NotACacheError, StaleCacheError
from cache.files import Found, atomic_folder, of_one_version, remove_leftovers, write_atomically
from cache.layout import FAMILIES, FLIPPED, LEDGER, ROWS, ArraySpec, Column, Constants
from cache.recipe import Recipe, RecipeValue, fingerprint, recipe_differences, written
from cache.storage import codec_arguments, unwarned
from cache.stores.places import Place, StorePath, for_zarr, reported

FORMAT_VERSION = 2
# Beside the `zarr.json` that a cache does not have yet, while a copy of it is put together.
UNFINISHED = ".copy"


def create_root(path: Path, rows_per_shard: int, permutation_seed: int) -> None:
    """Write the root group of a new cache at `path`, with empty families of columns."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update(
        {
            "format_version": FORMAT_VERSION,
            "rows_per_shard": rows_per_shard,
            "permutation_seed": permutation_seed,
        }
    )
    for family in FAMILIES:
        root.create_group(family)


def root_attributes(path: Place) -> dict[str, Any]:
    """The attributes of a cache's root group.

    Raises NotACacheError if `path` is not a cache of this format version.
    """
    if not (path / "zarr.json").is_file():
        raise _no_cache(path)
    attributes = read_group(path)
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise NotACacheError(
            f"its cache format is {version!r}; this version of repa-cache reads and writes format "
            f"{FORMAT_VERSION}",
            where=path,
            remedy="Use another path, or the version that wrote it.",
        )
    return attributes


def _no_cache(path: Place) -> NotACacheError:
    """The error for a place without a root group."""
    if is_unfinished(path):
        return NotACacheError(
            "this is the beginning of a copy of a cache",
            where=path,
            remedy="Run the same `repa-cache copy` again to finish it.",
        )
    if not path.exists():
        return NotACacheError(
            f"There is no cache at {path}", remedy="Run `repa-cache build` first."
        )
    return NotACacheError(
        "this is not a cache, it has no zarr.json", where=path, remedy="Choose another path."
    )


def is_unfinished(path: Place) -> bool:
    """Whether the beginning of a copy of a cache is at `path`."""
    return (path / UNFINISHED).is_file() and not (path / "zarr.json").is_file()


def read_group(path: Place) -> dict[str, Any]:
    """The attributes of a Zarr group. Raises DamagedCacheError if its zarr.json is unreadable."""
    try:
        attributes: dict[str, Any] = json.loads((path / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCacheError(f"its zarr.json cannot be read ({error})", where=path) from error
    return attributes


def update_group(path: Place, attributes: Mapping[str, Any]) -> None:
    """Give a Zarr group some attributes anew. Raises DamagedCacheError if it cannot be read."""
    kept = read_group(path)
    content = json.loads((path / "zarr.json").read_bytes())
    content["attributes"] = {**kept, **attributes}
    write_atomically(path / "zarr.json", json.dumps(content, indent=2).encode())


def has_column(path: Place, name: str) -> bool:
    """Whether the cache at `path` has a column of this name, finished or not."""
    place = path / name
    # In a store a folder goes object by object, and the group first.
    return (place / "zarr.json").is_file() if isinstance(place, StorePath) else place.is_dir()


def column_names(path: Place) -> list[str]:
    """The columns of the cache at `path`, finished or not."""
    names = [
        f"{family}/{name}"
        for family in FAMILIES
        for name in sorted(entry.name for entry in (path / family).glob("[!.]*/"))
    ]
    return [name for name in names if has_column(path, name)]


def titles(names: Iterable[str], family: str) -> list[str]:
    """The encoders or VAEs that columns are of. family: how the names of the columns begin."""
    own = (name for name in names if name.startswith(family) and not name.endswith(FLIPPED))
    return [name.removeprefix(family) for name in own]


def look_through(path: Place, look: Callable[[list[str]], Found]) -> Found:
    """What `look` finds in a whole cache, given the names of its columns, as of one moment.

    It is called again if the row table or a column was replaced meanwhile.
    """
    names = column_names(path)
    groups = (path / ROWS, *(path / name for name in names))
    return of_one_version(lambda: look([n for n in names if has_column(path, n)]), *groups)


def create_array(group: zarr.Group, spec: ArraySpec, rows: int, rows_per_shard: int) -> None:
    """Write the metadata of an array; shards are files that come later."""
    shard_shape = (rows_per_shard, *spec.row_shape)
    plain: dict[str, Any] = {"filters": None, "compressors": None}
    with unwarned():
        group.create_array(
            spec.name,
            shape=(rows, *spec.row_shape),
            dtype=spec.dtype,
            chunks=(1, *spec.row_shape) if spec.is_sharded else shard_shape,
            shards=shard_shape if spec.is_sharded else None,
            fill_value=spec.fill_value,
            chunk_key_encoding={"name": "default", "separator": "."},
            **(codec_arguments(spec.dtype) if spec.is_compressed else plain),
        )


def write_metadata(column: Column, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write the group and arrays of a column, without any row, into a folder.

    provenance: what does not decide a byte but helps a reader (model names, versions, time).
    """
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    for array in (*column.arrays, column.crc32c):
        create_array(group, array, column.rows, column.rows_per_shard)
    create_array(group, LEDGER, column.shards, 1)
    for name, values in column.constants.items():
        group.create_array(
            name,
            data=values,
            chunks=values.shape,
            compressors=None,
            filters=None,
            # A file also of zeros, which any reader finds.
            config={"write_empty_chunks": True},
        )
    group.attrs.update(
        {
            "arrays": [
                asdict(array) | {"row_shape": list(array.row_shape)} for array in column.arrays
            ],
            "recipe": written(column.recipe),
            "fingerprint": column.fingerprint,
            "provenance": dict(provenance),
        }
    )


def create_column(column: Column, provenance: Mapping[str, Any]) -> None:
    """Write a column's metadata in one step: it is there whole or not at all."""
    with atomic_folder(column.folder) as folder:
        write_metadata(column, folder, provenance)


def resize_column(column: Column) -> None:
    """Give the arrays of a column the number of rows that the row table has.

    Only while nobody else prepares the cache.
    """
    arrays = (*column.arrays, column.crc32c, LEDGER)
    for array in arrays:
        path = column.folder / array.name / "zarr.json"
        remove_leftovers(path.parent, "zarr.json.*")
        metadata = json.loads(path.read_bytes())
        length = column.shards if array is LEDGER else column.rows
        if metadata["shape"][0] != length:
            metadata["shape"][0] = length
            write_atomically(path, json.dumps(metadata, indent=2).encode())


def read_column(path: Place, name: str, rows: int) -> Column:
    """The column of this name, from its metadata.

    rows: number of rows of the cache. Raises DamagedCacheError if the metadata is not what was
    written.
    """
    rows_per_shard = root_attributes(path)["rows_per_shard"]
    folder = path / name
    return of_one_version(lambda: _read_column(name, folder, rows, rows_per_shard), folder)


def _read_column(name: str, folder: Place, rows: int, rows_per_shard: int) -> Column:
    attributes = read_group(folder)
    recipe = attributes.get("recipe", {})
    if fingerprint(recipe) != attributes.get("fingerprint"):
        raise DamagedCacheError(
            "the recipe was edited; it does not have the fingerprint that is stored with it",
            where=folder,
        )
    try:
        arrays = tuple(
            ArraySpec(**{**array, "row_shape": tuple(array["row_shape"])})
            for array in attributes["arrays"]
        )
    except (KeyError, TypeError) as error:
        raise DamagedCacheError("the list of its arrays was edited", where=folder) from error
    constants = _read_constants(folder, recipe)
    return Column(name, folder, arrays, recipe, rows, rows_per_shard, constants)


def _read_constants(folder: Place, recipe: Recipe) -> Constants:
    constants = {}
    digests: Any = recipe.get("constants", {})
    for name in digests:
        try:
            with reported(folder / name):
                array: Any = zarr.open_array(**for_zarr(folder / name), mode="r")
                constants[name] = np.asarray(array[...])
        except (OSError, ValueError, KeyError) as error:
            raise DamagedCacheError(f"{name} cannot be read ({error})", where=folder) from error
    if constants_recipe(constants) != digests:
        raise DamagedCacheError(
            f"{', '.join(digests)} is not what the shards were made with", where=folder
        )
    return constants


def constants_recipe(constants: Constants) -> dict[str, RecipeValue]:
    """What a recipe holds of a column's constants: the sha256 of the bytes of each."""
    return {
        name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in constants.items()
    }


def check_fields(column: Column, wanted: Recipe) -> None:
    """Raise StaleCacheError, naming them, if fields of a column's recipe are not these.

    wanted: the fields that are known; others may be anything.
    """
    check_recipe(column, {**column.recipe, **wanted})


def source_changes(column: Column) -> list[str]:
    """In what the column that a derived one was made of is another now, a line for each field.

    Nothing of one that was made of images, or whose source is gone.
    """
    source = str(column.recipe.get("source", ""))
    if not source or not has_column(column.cache, source):
        return []
    now: Recipe = {"source_fingerprint": read_group(column.cache / source).get("fingerprint")}
    return recipe_differences({"source_fingerprint": column.recipe["source_fingerprint"]}, now)


def check_recipe(column: Column, wanted: Recipe) -> None:
    """Raise StaleCacheError, naming the fields that differ, unless the recipes are equal.

    wanted: without the constants, which were measured once and are the column's own.
    """
    own = {field: column.recipe[field] for field in ("constants",) if field in column.recipe}
    if changed := recipe_differences(column.recipe, {**own, **wanted}):
        raise StaleCacheError(
            f"it was built by another recipe ({'; '.join(changed)})",
            where=column.folder,
            remedy=(
                f"Restore these settings, run `repa-cache build --rebuild {column.folder.name}` to "
                "make it anew, or choose another cache.path."
            ),
        )
