"""Mending a cache: rows from the data set, metadata from the recipe, shards by making them again.

Nothing that is intact is touched. What decides a byte is never guessed: the seals in a column's
ledger tell whether the configuration's recipe made its shards.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zarr

from cache import ledger
from cache.changes import merged
from cache.errors import DamagedCacheError, StaleCacheError
from cache.files import write_atomically
from cache.layout import Column, Constants
from cache.metadata import check_recipe, has_column, read_column, read_group, write_metadata
from cache.rows import RowTable, read_rows, read_stored_rows, write_rows
from cache.verify import Fault, Remedy, find_faults, survey
from stages.encode.building.column_specs import describe, measure, provenance
from stages.encode.building.columns import Maker
from stages.encode.images.crop_batches import CropReader
from stages.progress import progress


def mend_rows(path: Path, current: RowTable, seed: int, block: int) -> None:
    """Take a damaged row table from the data set again, in the order in which it was.

    Should that order be lost, the ledgers tell which shards hold other images by now.
    """
    try:
        read_rows(path)
    except DamagedCacheError:
        rows = current.permuted(seed, block)
        with suppress(DamagedCacheError, KeyError):
            rows = merged(read_stored_rows(path).rows, current, seed, block)
        write_rows(path, rows)


def mend_columns(path: Path, makers: Sequence[Maker], crops: CropReader) -> None:
    """Write damaged metadata of columns anew, from their recipes.

    Raises StaleCacheError if the shards of a damaged column were made by another recipe.
    """
    faults = [fault for fault in survey(path).faults if fault.shard is None]
    damaged = {fault.column for fault in faults if fault.remedy is Remedy.REPAIR}
    for maker in makers:
        if maker.column in damaged or _has_other_recipe(path, maker, crops):
            _mend_column(path, maker, crops, is_damaged=maker.column in damaged)


def _has_other_recipe(path: Path, maker: Maker, crops: CropReader) -> bool:
    if not has_column(path, maker.column):
        return False
    try:
        check_recipe(read_column(path, maker.column, len(crops.rows)), maker.recipe)
    except StaleCacheError:
        return True
    return False


def strike_damaged_shards(path: Path, columns: Sequence[Column], threads: int) -> list[Fault]:
    """Take damaged shards out of the ledgers, to be made again.

    Returns the faults of other columns, which another configuration has to mend.
    """
    faults = [
        fault for fault in find_faults(path, threads, progress) if fault.remedy is not Remedy.BUILD
    ]
    own = {column.name: column for column in columns}
    for fault in faults:
        if fault.column in own and fault.shard is not None:
            ledger.strike(own[fault.column], fault.shard)
    return [fault for fault in faults if fault.column not in own]


def _mend_column(path: Path, maker: Maker, crops: CropReader, *, is_damaged: bool) -> None:
    """Write what describes a column anew, if its shards bear witness to the maker's recipe."""
    folder = path / maker.column
    for constants in _possible_constants(folder, maker, crops):
        column = describe(path, maker, crops, constants)
        if ledger.was_made_by(column):
            _write_over(column)
            return
    if is_damaged:
        raise StaleCacheError(
            "what describes it is damaged, and its shards were not made by the recipe of this "
            "configuration",
            where=folder,
            remedy=f"Run `repa-cache build --rebuild {folder.name}`.",
        )


def _write_over(column: Column) -> None:
    made_by = provenance(column.recipe)
    with suppress(DamagedCacheError):
        made_by = read_group(column.folder).get("provenance", made_by)
    with TemporaryDirectory() as aside:
        write_metadata(column, Path(aside), made_by)
        for file in (entry for entry in Path(aside).rglob("*") if entry.is_file()):
            target = column.folder / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, file.read_bytes())


def _possible_constants(folder: Path, maker: Maker, crops: CropReader) -> Iterator[Constants]:
    """The constants of a column as they lie there, and as they are if measured once more."""
    constants: dict[str, Any] = {}
    try:
        for name in maker.storage.constants:
            array: Any = zarr.open_array(folder / name, mode="r")
            constants[name] = np.asarray(array[...])
    except (OSError, ValueError, KeyError):
        pass
    else:
        yield constants
    if maker.storage.constants:
        yield measure(maker, crops)
