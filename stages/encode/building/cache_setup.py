"""Laying out a cache before shards are made: its rows, its columns, their form on disk.

Whatever can be refused is refused before anything is written. Mending touches nothing that is
intact, and never guesses what decides a byte: rows come from the data set, metadata from the
recipe, shards from being made again, and the seals in a column's ledger tell whether the
configuration's recipe made them.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zarr

from cache import files, ledger, metadata
from cache.changes import compare, merged
from cache.errors import DamagedCacheError, StaleCacheError
from cache.layout import FAMILIES, Column, Constants
from cache.locking.locks import BuildLocks
from cache.recipe import differences
from cache.rows import (
    RowTable,
    StoredRows,
    create_cache,
    read_rows,
    read_stored_rows,
    write_rows,
)
from cache.stores.places import Place
from cache.verify import Fault, Remedy, find_faults, survey
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import CacheSettings
from stages.encode.building.columns import Maker, open_column, planned_column
from stages.encode.building.provenance import provenance
from stages.encode.building.token_batches import Reader
from stages.encode.images.index import recognised
from stages.latents import MEASURED
from stages.progress import progress


@dataclass(frozen=True)
class Wanted:
    """The rows that a cache shall have.

    added: how many of them it does not have yet; is_stored: whether it has them all, as they are.
    """

    rows: RowTable
    added: int
    is_stored: bool


def known_rows(path: Place) -> StoredRows | None:
    """The rows that an earlier build indexed, if they can be read."""
    try:
        return read_stored_rows(path) if path.exists() else None
    except DamagedCacheError:
        return None


def lay_out(
    settings: CacheSettings,
    options: BuildOptions,
    makers: Sequence[Maker],
    wanted: Wanted,
    reader: Reader,
    threads: int,
) -> tuple[tuple[Column, ...], list[Fault]]:
    """Write what lacks of rows and columns. Nobody else may be preparing.

    reader: of the wanted rows. Returns the columns, and faults that these makers cannot mend.
    """
    path = settings.path
    if options.repair:
        mend_columns(path, makers, reader)
    for maker in makers:
        if metadata.has_column(path, maker.column) and maker.column not in options.rebuild:
            metadata.check_recipe(
                metadata.read_column(path, maker.column, len(reader.rows)), maker.recipe
            )
    if not path.exists():
        create_cache(path, wanted.rows, settings.rows_per_shard, settings.seed)
    elif not wanted.is_stored:
        write_rows(path, wanted.rows)
    for name in options.rebuild:
        if metadata.has_column(path, name):
            files.remove_folder(path / name)
    columns = tuple(open_column(path, maker, reader) for maker in makers)
    damaged = strike_damaged_shards(path, columns, threads) if options.repair else []
    return columns, damaged


def tidy(path: Place) -> None:
    """Remove what killed builds left. Nobody else may be preparing."""
    files.remove_leftovers(path.parent, f"{path.name}.*")
    if path.exists():
        files.recover(path / "rows")
        for name in ("", *FAMILIES, *metadata.column_names(path)):
            files.remove_leftovers(path / name)


def wanted_rows(
    settings: CacheSettings,
    options: BuildOptions,
    current: RowTable,
    known: StoredRows | None,
    locks: BuildLocks,
    block: int = 1,
    *,
    may_recognise: bool = False,
) -> Wanted:
    """The rows that the cache shall have, for the data set as it is.

    known: those that it had before; block: images that the data set gives together, and that stay
    together; may_recognise: whether images are known by their content where their keys are not.
    Raises StaleCacheError and RowsChangedError if the cache cannot have them.
    """
    path, seed = settings.path, settings.seed
    if not path.exists():
        return Wanted(current.permuted(seed, block), len(current), is_stored=False)
    check_layout(settings)
    if options.repair or options.rebuild:
        locks.require_alone("repairing or rebuilding")
    if options.repair:
        mend_rows(path, current, seed, block)
    cached = read_rows(path, known)
    if may_recognise:
        current = recognised(current, cached)
    changes = compare(cached, current)
    changes.check(path, may_update=options.update)
    rows = merged(cached, current, seed, block, changes.place)
    if not rows.looks_like(cached):
        locks.require_alone("taking over a data set that changed")
    return Wanted(rows, len(rows) - len(cached), rows.equals(cached))


def check_layout(settings: CacheSettings) -> None:
    """Raise StaleCacheError if a cache that is there was laid out by other settings."""
    path = settings.path
    root = metadata.root_attributes(path)
    fixed = {"rows_per_shard": settings.rows_per_shard, "permutation_seed": settings.seed}
    if changed := differences({field: root[field] for field in fixed}, fixed):
        raise StaleCacheError(
            f"what is fixed when a cache is made differs ({'; '.join(changed)})",
            where=path,
            remedy="Restore cache.rows_per_shard and cache.seed, or choose another cache.path.",
        )


def mend_rows(path: Place, current: RowTable, seed: int, block: int) -> None:
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


def mend_columns(path: Place, makers: Sequence[Maker], reader: Reader) -> None:
    """Write damaged metadata of columns anew, from their recipes.

    Raises StaleCacheError if the shards of a damaged column were made by another recipe.
    """
    faults = [fault for fault in survey(path).faults if fault.shard is None]
    damaged = {fault.column for fault in faults if fault.remedy is Remedy.REPAIR}
    for maker in makers:
        if maker.column in damaged or _has_other_recipe(path, maker, reader):
            _mend_column(path, maker, reader, is_damaged=maker.column in damaged)


def _has_other_recipe(path: Place, maker: Maker, reader: Reader) -> bool:
    if not metadata.has_column(path, maker.column):
        return False
    try:
        metadata.check_recipe(
            metadata.read_column(path, maker.column, len(reader.rows)), maker.recipe
        )
    except StaleCacheError:
        return True
    return False


def strike_damaged_shards(path: Place, columns: Sequence[Column], threads: int) -> list[Fault]:
    """Take damaged shards out of the ledgers, to be made again.

    Returns the faults of other columns, which another configuration has to mend.
    """
    faults = [
        fault for fault in find_faults(path, threads, progress) if fault.remedy is Remedy.REPAIR
    ]
    return strike(columns, faults)


def strike(columns: Sequence[Column], faults: Sequence[Fault]) -> list[Fault]:
    """Take shards of some columns that have faults out of the ledgers; returns the other faults."""
    own = {column.name: column for column in columns}
    for fault in faults:
        if fault.column in own and fault.shard is not None:
            ledger.strike(own[fault.column], fault.shard)
    return [fault for fault in faults if fault.column not in own]


def _mend_column(path: Place, maker: Maker, reader: Reader, *, is_damaged: bool) -> None:
    """Write what describes a column anew, if its shards bear witness to the maker's recipe."""
    folder = path / maker.column
    for constants in _possible_constants(folder, maker, reader):
        column = planned_column(path, maker, reader, constants)
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
    made_by, measured = provenance(column.recipe), None
    with suppress(DamagedCacheError):
        kept = metadata.read_group(column.folder)
        made_by, measured = kept.get("provenance", made_by), kept.get(MEASURED)
    with TemporaryDirectory() as aside:
        metadata.write_metadata(column, Path(aside), made_by)
        if measured is not None:
            metadata.update_group(Path(aside), {MEASURED: measured})
        for file in (entry for entry in Path(aside).rglob("*") if entry.is_file()):
            target = column.folder / file.relative_to(aside).as_posix()
            if isinstance(target, Path):
                target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(target, file.read_bytes())


def _possible_constants(folder: Place, maker: Maker, reader: Reader) -> Iterator[Constants]:
    """The constants of a column as they lie there, and as they are if measured once more."""
    constants: dict[str, Any] = {}
    try:
        for name in maker.constants:
            array: Any = zarr.open_array(folder / name, mode="r")
            constants[name] = np.asarray(array[...])
    except (OSError, ValueError, KeyError):
        pass
    else:
        yield constants
    if maker.constants:
        yield maker.measure(reader)
