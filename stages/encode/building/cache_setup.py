"""Laying out a cache before shards are made: its rows, its columns, their form on disk.

Whatever can be refused is refused before anything is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.changes import compare, merged
from cache.errors import DamagedCacheError, StaleCacheError
from cache.files import recover, remove_folder, remove_leftovers
from cache.layout import FAMILIES, Column
from cache.locks import BuildLocks
from cache.metadata import (
    check_recipe,
    has_column,
    read_column,
    root_attributes,
)
from cache.recipe import differences
from cache.rows import (
    RowTable,
    StoredRows,
    create_cache,
    read_rows,
    read_stored_rows,
    write_rows,
)
from cache.verify import Fault
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import CacheSettings
from stages.encode.building.column_specs import open_column
from stages.encode.building.columns import Maker
from stages.encode.building.repair import mend_columns, mend_rows, strike_damaged_shards
from stages.encode.images.crop_batches import CropReader
from stages.encode.images.index import recognised


@dataclass(frozen=True)
class Prepared:
    """A cache whose rows and columns are laid out.

    added: rows that are new to it; damaged: faults that these makers cannot mend.
    """

    columns: tuple[Column, ...]
    added: int
    damaged: tuple[Fault, ...]


@dataclass(frozen=True)
class Wanted:
    """The rows that a cache shall have.

    added: how many of them it does not have yet; is_stored: whether it has them all, as they are.
    """

    rows: RowTable
    added: int
    is_stored: bool


def known_rows(path: Path) -> StoredRows | None:
    """The rows that an earlier build indexed, if they can be read."""
    try:
        return read_stored_rows(path) if path.exists() else None
    except DamagedCacheError:
        return None


def prepare(
    settings: CacheSettings,
    options: BuildOptions,
    makers: Sequence[Maker],
    wanted: Wanted,
    crops: CropReader,
    threads: int,
) -> Prepared:
    """Write what lacks of rows and columns. Nobody else may be preparing.

    crops: of the wanted rows.
    """
    path = settings.path
    if options.repair:
        mend_columns(path, makers, crops)
    for maker in makers:
        if has_column(path, maker.column) and maker.column not in options.rebuild:
            check_recipe(read_column(path, maker.column, len(crops.rows)), maker.recipe)
    _store_rows(settings, wanted)
    for name in options.rebuild:
        if has_column(path, name):
            remove_folder(path / name)
    columns = tuple(open_column(path, maker, crops) for maker in makers)
    damaged = strike_damaged_shards(path, columns, threads) if options.repair else []
    return Prepared(columns, wanted.added, tuple(damaged))


def tidy(path: Path) -> None:
    """Remove what killed builds left. Nobody else may be preparing."""
    remove_leftovers(path.parent, f"{path.name}.*")
    if path.exists():
        recover(path / "rows")
        for folder in (path, *(path / family for family in FAMILIES)):
            remove_leftovers(folder)


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
    root = root_attributes(path)
    fixed = {"rows_per_shard": settings.rows_per_shard, "permutation_seed": settings.seed}
    if changed := differences({field: root[field] for field in fixed}, fixed):
        raise StaleCacheError(
            f"what is fixed when a cache is made differs ({'; '.join(changed)})",
            where=path,
            remedy="Restore cache.rows_per_shard and cache.seed, or choose another cache.path.",
        )


def _store_rows(settings: CacheSettings, wanted: Wanted) -> None:
    if not settings.path.exists():
        create_cache(settings.path, wanted.rows, settings.rows_per_shard, settings.seed)
    elif not wanted.is_stored:
        write_rows(settings.path, wanted.rows)
