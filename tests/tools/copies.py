"""Caches to be copied, without networks, and what may be seen of a copy at any moment."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tiny_cache import ARRAYS, ROWS_PER_SHARD, SEED, fill, make_cache, make_rows

from cache import ledger
from cache.captions import CAPTIONS, links_of, write_links
from cache.changes import merged
from cache.errors import IncompleteCacheError, NotACacheError
from cache.layout import VALID, ArraySpec, Column
from cache.metadata import (
    column_names,
    constants_recipe,
    create_column,
    read_column,
    resize_column,
    root_attributes,
)
from cache.reader import Cache
from cache.rows import RowTable, create_cache, read_rows, write_rows
from cache.stores.places import Place, StorePath
from cache.verify import Remedy, find_all_faults

CODES = ArraySpec("tokens", "int8", (5, 7))
# Tokens of texts, of which zeros take no place.
TEXTS = ArraySpec("tokens", "float16", (6, 9), is_compressed=True)
ADDED = 9


def make_whole(path: Path) -> None:
    """A finished cache with what one can have: constants, mirrored images, captions."""
    make_cache(path)
    rows = read_rows(path)
    scale = {"channel_scale": np.arange(7, dtype=np.float32), "zeros": np.zeros(3, np.float32)}
    for name, arrays, constants in (
        ("features/codes", (CODES, VALID), scale),
        ("features/x.flipped", ARRAYS, {}),
    ):
        finish(made_column(path, name, arrays, constants, rows), rows)
    tell(path, 2)


def made_column(
    path: Path,
    name: str,
    arrays: Sequence[ArraySpec],
    constants: dict[str, np.ndarray],
    rows: RowTable,
) -> Column:
    recipe = {"model": name, "storage": "float16", "constants": constants_recipe(constants)}
    column = Column(name, path / name, tuple(arrays), recipe, len(rows), ROWS_PER_SHARD, constants)
    create_column(column, {"created": "today"})
    return read_column(path, name, len(rows))


def finish(column: Column, rows: RowTable) -> None:
    for shard in ledger.missing(column, rows):
        fill(column, shard, rows)


def tell(path: Path, each: int) -> None:
    """Give each image so many captions, and have the tokens of all."""
    rows, inside = read_rows(path), path / CAPTIONS
    known = read_rows(inside) if inside.exists() else None
    captions = [[f"{key} {number}" for number in range(each)] for key in rows.key.tolist()]
    links, texts = links_of(rows.key, captions, known)
    if known is None:
        create_cache(inside, texts, ROWS_PER_SHARD, SEED)
        made_column(inside, "features/t", (TEXTS, VALID), {}, texts)
    else:
        write_rows(inside, texts)
    write_links(path, links, texts)
    column = read_column(inside, "features/t", len(texts))
    resize_column(column)
    finish(column, texts)


def grow(path: Path) -> None:
    """All that a build does when images were added, and captions."""
    known = read_rows(path)
    rows = merged(known, make_rows(len(known) + ADDED), SEED)
    write_rows(path, rows)
    for name in column_names(path):
        column = read_column(path, name, len(rows))
        resize_column(column)
        finish(column, rows)
    tell(path, 3)


def contents(place: Place) -> dict[str, bytes]:
    """All that lies below a place, by name."""
    files = (
        place.tree()
        if isinstance(place, StorePath)
        else (file for file in place.rglob("*") if file.is_file())
    )
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}  # type: ignore[arg-type]


def check(target: Place, originals: Sequence[Path]) -> bool:
    """Open what is at a target of a copy: there is no cache, or one that is right.

    originals: caches that it may be one of. Returns whether there is one.
    """
    try:
        root_attributes(target)
    except NotACacheError:
        return False
    faults = find_all_faults(target, 1)
    assert not [one for one in faults if one.remedy is Remedy.REPAIR], faults
    for part in (target, target / CAPTIONS):
        if (part / "zarr.json").is_file():
            _check_part(part, [one / CAPTIONS if part != target else one for one in originals])
    return True


def _check_part(target: Place, originals: Sequence[Path]) -> None:
    cache = Cache(target)
    (original,) = (Cache(one) for one in originals if read_rows(one).equals(cache.rows))
    for name in column_names(target):
        try:
            reader = cache.column(name, verify=True)
        except IncompleteCacheError:
            continue
        expected = original.column(name)
        assert reader.column == replace(
            expected.column, folder=reader.column.folder, constants=reader.column.constants
        )
        for array in reader.column.arrays:
            rows = np.arange(len(cache.rows))
            assert reader.read(array.name, rows).tobytes() == (
                expected.read(array.name, rows).tobytes()
            )
