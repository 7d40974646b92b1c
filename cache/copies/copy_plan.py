"""What a copy of a cache has to do, and whether it may be made: found out before it writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cache import ledger
from cache.captions import CAPTIONS, LINKS, has_texts, located
from cache.copies.shard_copies import ColumnCopy
from cache.copies.skeleton import GROUP, copy_skeleton
from cache.errors import CopyError, IncompleteCacheError
from cache.files import of_one_version, standing
from cache.layout import FAMILIES, FLIPPED, ROWS, Column
from cache.metadata import (
    UNFINISHED,
    column_names,
    has_column,
    read_column,
    read_group,
    root_attributes,
)
from cache.recipe import recipe_differences
from cache.rows import RowTable, read_rows
from cache.stores.addresses import is_web
from cache.stores.places import Place, StorePath, for_each

# Of the root, what cannot change once there are shards.
FIXED = ("rows_per_shard", "permutation_seed")


@dataclass(frozen=True)
class CopiedColumn:
    """What a copy did for a column, or would do.

    shards: of the column; copied: how many of them were; copied_bytes: of these; unfinished: that
    are not built yet at the source.
    """

    name: str
    shards: int
    copied: int
    copied_bytes: int
    unfinished: int

    @property
    def there(self) -> int:
        """How many shards were there already."""
        return self.shards - self.copied - self.unfinished


@dataclass(frozen=True)
class CachePlan:
    """What is to be done for the images' part of a cache, or the texts'.

    skeleton: a local folder with all files of the source but shards; rows: of the source; known:
    those that the target has, None if it has none yet; is_there: whether the target is a cache, and
    not to become one; texts: the plan for those inside, if they are copied.
    """

    source: Place
    target: Place
    skeleton: Path
    rows: RowTable
    known: RowTable | None
    is_there: bool
    columns: tuple[ColumnCopy, ...]
    texts: "CachePlan | None" = None

    @property
    def parts(self) -> tuple["CachePlan", ...]:
        """Itself, and that of the texts."""
        return (self,) if self.texts is None else (self, self.texts)

    @property
    def outcome(self) -> tuple[CopiedColumn, ...]:
        """What it comes to."""
        own = tuple(
            CopiedColumn(
                copy.source.name,
                copy.source.shards,
                len(copy.missing),
                sum(copy.missing.values()),
                copy.source.shards - len(copy.entries),
            )
            for copy in self.columns
        )
        inside = self.texts.outcome if self.texts else ()
        return (*own, *(replace(one, name=f"{CAPTIONS}/{one.name}") for one in inside))

    @property
    def is_growing(self) -> bool:
        """Whether the target lacks rows that the source has."""
        return self.known is not None and len(self.known) < len(self.rows)


def check_target(target: Place) -> None:
    """Raise CopyError for a place where nothing can be written."""
    if is_web(target):
        raise CopyError("web servers take no files", where=target, remedy="Copy to another place.")


@contextmanager
def planned(source: Place, target: Place, names: Sequence[str] | None) -> Iterator[CachePlan]:
    """What it takes to copy a cache with some of its columns, or with all.

    names: of columns or, with their mirrored images, of encoders. Raises CopyError if the target
    is something else, NotACacheError if the source is no cache.
    """
    root_attributes(source)
    images, texts = _chosen(source, names)
    with TemporaryDirectory() as folder:
        plan = _planned_part(source, target, images, Path(folder) / "images")
        if texts is not None:
            inside = (source / CAPTIONS, target / CAPTIONS)
            part = _planned_part(*inside, texts, Path(folder) / "texts", is_of_texts=True)
            plan = replace(plan, texts=part)
        yield plan


def _chosen(source: Place, names: Sequence[str] | None) -> tuple[list[str], list[str] | None]:
    """The columns of images that are meant, and those of texts, None if these are not copied."""
    if names is None:
        if is_web(source):
            raise CopyError(
                "a web server does not tell what it has",
                where=source,
                remedy="Name columns with --columns, as features/dinov2-vit-b.",
            )
        texts = column_names(source / CAPTIONS) if has_texts(source) else None
        return column_names(source), texts
    found = list(dict.fromkeys(one for name in names for one in _meant(source, name)))
    prefix = f"{CAPTIONS}/"
    of_texts = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    return [name for name in found if not name.startswith(prefix)], of_texts or None


def _meant(source: Place, name: str) -> list[str]:
    """The columns that a name is of. Raises IncompleteCacheError if there are none."""
    families = [*FAMILIES, *(f"{CAPTIONS}/{family}" for family in FAMILIES)]
    plain = [name] if "/" in name else [f"{family}/{name}" for family in families]
    possible = [*plain, *(one + FLIPPED for one in plain)]
    are_there = for_each(lambda one: has_column(*located(source, one)), possible)
    if not any(are_there):
        raise IncompleteCacheError(
            f"it has no column {name}",
            where=source,
            remedy="`repa-cache inspect` lists those that it has.",
        )
    return [one for one, is_there in zip(possible, are_there, strict=True) if is_there]


def _planned_part(
    source: Place, target: Place, names: Sequence[str], folder: Path, *, is_of_texts: bool = False
) -> CachePlan:
    groups = [source / name for name in (ROWS, *names, *((LINKS,) if is_of_texts else ()))]

    def read() -> tuple[RowTable, list[tuple[Column, Mapping[int, bytes]]]]:
        copy_skeleton(source, names, folder, is_of_texts=is_of_texts)
        rows = read_rows(folder)
        columns = [read_column(folder, name, len(rows)) for name in names]
        there = [replace(column, folder=source / column.name) for column in columns]
        return rows, [(column, _finished(column, rows)) for column in there]

    rows, found = of_one_version(read, *groups)
    is_there = _is_there(target, root_attributes(folder))
    known = _known_rows(source, target, rows) if is_there or _has_rows(target) else None
    for name in dict.fromkeys([*names, *(str(c.recipe.get("source", "")) for c, _ in found)]):
        if name and has_column(source, name):
            _check_recipe(source, target, name)
    columns = tuple(_planned_column(target, column, entries) for column, entries in found)
    return CachePlan(source, target, folder, rows, known, is_there, columns)


def _finished(column: Column, rows: RowTable) -> dict[int, bytes]:
    """The entries of the shards that are finished for the rows."""
    recorded = ledger.Recorded.of(column)
    finished = sorted(set(range(column.shards)).difference(recorded.missing(rows)))
    return {shard: recorded.entries[shard] for shard in finished}


def _is_there(target: Place, root: Mapping[str, Any]) -> bool:
    """Whether the target is a cache. Raises CopyError if it cannot become a copy.

    root: the attributes of the source.
    """
    if (target / GROUP).is_file():
        own = root_attributes(target)
        if any(own[name] != root[name] for name in FIXED):
            listing = "; ".join(f"{name}: {own[name]} instead of {root[name]}" for name in FIXED)
            raise _is_other(target, f"it is laid out otherwise ({listing})")
        return True
    is_begun = (target / UNFINISHED).is_file()
    if not is_begun and target.exists() and not (target.is_dir() and _is_empty(target)):
        raise _is_other(target, "something is there that is no cache")
    return False


def _is_empty(folder: Place) -> bool:
    return next(iter(folder.iterdir()), None) is None


def _has_rows(target: Place) -> bool:
    """Whether what is to become a cache has rows already."""
    return (standing(target / ROWS) / GROUP).is_file()


def _known_rows(source: Place, target: Place, rows: RowTable) -> RowTable:
    """The rows that the target has. Raises CopyError unless the source's begin with them."""
    known = read_rows(target)
    if rows.begins_with(known):
        return known
    if known.begins_with(rows):
        raise _is_other(target, f"it has {len(known) - len(rows):,} rows more than {source}")
    raise _is_other(target, f"its rows are not those of {source}: other keys, labels or contents")


def _check_recipe(source: Place, target: Place, name: str) -> None:
    """Raise CopyError if the target has a column of this name that another recipe made."""
    if not has_column(target, name):
        return
    own, other = read_group(target / name), read_group(source / name)
    if own.get("fingerprint") != other.get("fingerprint"):
        # Those of `cache.recipe` speak of a configuration.
        fields = [
            line.partition(":")[0] for line in recipe_differences(own["recipe"], other["recipe"])
        ]
        raise _is_other(target / name, f"another recipe made it (others are: {', '.join(fields)})")


def _is_other(where: Place, what: str) -> CopyError:
    return CopyError(what, where=where, remedy="Copy to another place, or remove what is there.")


def _planned_column(target: Place, column: Column, entries: Mapping[int, bytes]) -> ColumnCopy:
    folder = target / column.name
    is_new = not has_column(target, column.name)
    there = replace(column, folder=put_together(folder) if is_new else folder)
    own = ledger.Recorded.of(there).entries
    missing = [shard for shard, entry in entries.items() if own.get(shard) != entry]
    sizes = for_each(lambda shard: _shard_bytes(column, shard), missing)
    return ColumnCopy(
        source=column,
        target=there,
        entries=entries,
        missing=dict(zip(missing, sizes, strict=True)),
        replaced=frozenset(own.keys() & set(missing)),
        is_ahead=bool(own.keys() - entries.keys()),
        is_new=is_new,
    )


def put_together(folder: Place) -> Place:
    """Where a column is put together that is to be at a place, and does not count until then.

    In a store that is its place, where it is none without its group.
    """
    return folder if isinstance(folder, StorePath) else folder.with_name(f".{folder.name}.copy")


def _shard_bytes(column: Column, shard: int) -> int:
    """The bytes of a shard in all arrays, as far as they can be told."""
    total = 0
    for array in column.arrays:
        try:
            is_known = not array.is_compressed
            place = column.shard_path(array, shard)
            total += column.shard_bytes(array, shard) if is_known else place.stat().st_size
        except FileNotFoundError:
            # The copy will say so.
            continue
    return total
