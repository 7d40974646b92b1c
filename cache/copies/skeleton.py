"""The skeleton of a cache: all its files but those of shards, which are small.

What they are called follows from what they say, so that nothing is listed: web servers cannot do
that.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache import captions
from cache.errors import DamagedCacheError
from cache.files import standing
from cache.layout import FAMILIES, LEDGER, ROWS
from cache.metadata import read_group
from cache.rows import FIELDS
from cache.stores.places import Place, for_each

GROUP = "zarr.json"


def copy_skeleton(source: Place, names: Sequence[str], folder: Path, *, is_of_texts: bool) -> None:
    """Have a local folder hold the skeleton of a cache with some of its columns, and nothing else.

    is_of_texts: whether the cache is one inside of another, with links. Its groups may be replaced
    meanwhile: see `cache.files.of_one_version`. Raises DamagedCacheError for what is missing.
    """
    shutil.rmtree(folder, ignore_errors=True)
    _fetch(source, folder, (GROUP, *(f"{family}/{GROUP}" for family in FAMILIES)))
    _copy_group(standing(source / ROWS), folder / ROWS, FIELDS)
    for name in names:
        attributes = read_group(source / name)
        try:
            arrays = [array["name"] for array in attributes["arrays"]]
            constants = attributes["recipe"].get("constants", {})
        except (KeyError, TypeError) as error:
            raise DamagedCacheError("its attributes were edited", where=source / name) from error
        in_shards = (*arrays, "crc32c", LEDGER.name)
        _copy_group(source / name, folder / name, tuple(constants), in_shards)
    if is_of_texts:
        _copy_group(standing(source / captions.LINKS), folder / captions.LINKS, captions.FIELDS)


def _copy_group(
    source: Place, folder: Path, whole: Sequence[str], described: Iterable[str] = ()
) -> None:
    """Copy a group: some arrays as a whole, and of others what describes them."""
    needed = [GROUP, *(f"{array}/{GROUP}" for array in (*whole, *described))]
    _fetch(source, folder, needed)
    if absent := [name for name in needed if not (folder / name).is_file()]:
        raise DamagedCacheError("it is missing", where=source / absent[0])
    # A chunk that holds nothing but the fill value has no file.
    _fetch(source, folder, [f"{array}/{key}" for array in whole for key in _chunks(folder / array)])


def _chunks(path: Path) -> list[str]:
    """The names of the files of all chunks that an array can have."""
    array: zarr.Array[Any] = zarr.open_array(path, mode="r")
    return [array.metadata.encode_chunk_key(place) for place in np.ndindex(*array.cdata_shape)]


def _fetch(source: Place, folder: Path, names: Iterable[str]) -> None:
    """Copy small files, as far as they are there."""

    def fetch(name: str) -> None:
        try:
            content = (source / name).read_bytes()
        except FileNotFoundError:
            return
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    for_each(fetch, list(names))
