"""What a cache holds and which runs used it, as far as can be told without reading its tensors.

N rows, T tokens, D features, C latent channels, h and w the latent's sides.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cache import ledger
from cache.captions import CAPTIONS, LINKS, Captions, has_captions, has_texts, read_links
from cache.errors import DamagedCacheError
from cache.layout import FEATURES, PIXELS, VALID, Column
from cache.metadata import look_through, read_column, read_group, root_attributes
from cache.recipe import Recipe, recipe_differences
from cache.rows import RowTable, read_stored_rows
from cache.stores.places import Place, StorePath
from cache.verify import Fault, Remedy, survey
from pipeline.config import Config
from stages.encode.building.recipes import declared_recipes
from stages.weights.checkpoint import latest


@dataclass(frozen=True)
class RunUse:
    """A run whose newest checkpoint names columns of a cache.

    columns: those it was trained on; others: those of which it had another version; is_same_rows:
    whether it saw the rows that the cache has.
    """

    run: Path
    model: str
    step: int
    columns: tuple[str, ...]
    others: tuple[str, ...]
    is_same_rows: bool

    @property
    def images(self) -> str:
        """What is to be said of the images that the run saw."""
        return "these" if self.is_same_rows else "others, or fewer than there are"


def find_uses(
    folder: Path, fingerprints: Mapping[str, str], rows: RowTable | None
) -> Iterator[RunUse]:
    """The runs in a folder that used columns of these names.

    fingerprints: of the cache's columns; rows: the cache's, if they can be read.
    """
    images = None if rows is None else rows.fingerprint
    for run in sorted(folder.glob("*/")):
        found = latest(run)
        if found is None:
            continue
        try:
            state = found.state
            used, identity, model = state["columns"], state["rows"], state["settings"]["model"]
        except (OSError, ValueError, KeyError, TypeError):
            # A checkpoint of another program, or a torn one, tells nothing of this cache.
            continue
        known = [name for name in used if name in fingerprints]
        same = tuple(name for name in known if used[name] == fingerprints[name])
        others = tuple(name for name in known if name not in same)
        if known:
            # Equal recipes have equal fingerprints, also in caches of different images.
            is_same_rows = identity["fingerprint"] == images
            yield RunUse(run, model, found.step, same, others, is_same_rows)


@dataclass(frozen=True)
class CachedColumn:
    """A column, finished or not.

    there: which rows, [N], are finished and valid; finished: number of shards; invalid: rows of
    these whose image could not be decoded; provenance: when and with what it was made; changes:
    how its recipe differs from what the configuration would build, or None if that has no such
    column; is_of_texts: whether its rows are texts, and it lies in the cache of these.
    """

    column: Column
    there: npt.NDArray[np.bool_]
    finished: int
    invalid: int
    disk_bytes: int
    provenance: Mapping[str, str]
    changes: Sequence[str] | None
    is_of_texts: bool = False

    @property
    def name(self) -> str:
        """The column's name, as seen from the cache of images."""
        return f"{CAPTIONS}/{self.column.name}" if self.is_of_texts else self.column.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of its grid, and the features at each place."""
        main = self.column.arrays[0].row_shape
        if self.is_of_texts:
            tokens, features = main
            return 1, tokens, features
        if self.name.startswith(FEATURES):
            return isqrt(main[0]), isqrt(main[0]), main[1]
        channels, height, width = main
        return height, width, channels if self.name.startswith(PIXELS) else channels // 2


@dataclass(frozen=True)
class Contents:
    """What there is to know of a cache.

    root: its attributes; rows: None if the row table cannot be read; unreadable: columns whose
    metadata cannot be read; missing: columns that the configuration asks for and the cache does
    not have; faults: what is wrong, as far as it shows without reading the tensors; texts: columns
    of captions; captions: how many texts there are, images that have some, and captions of all.
    """

    path: Place
    root: Mapping[str, Any]
    rows: RowTable | None
    columns: tuple[CachedColumn, ...]
    unreadable: tuple[str, ...]
    missing: tuple[str, ...]
    runs: tuple[RunUse, ...]
    faults: tuple[Fault, ...]
    texts: tuple[CachedColumn, ...] = ()
    captions: tuple[int, int, int] | None = None

    @cached_property
    def told(self) -> Captions | None:
        """The captions of the images, if there are any that can be read."""
        if self.rows is None or not has_captions(self.path):
            return None
        try:
            return Captions(self.path, self.rows)
        except DamagedCacheError:
            return None

    @property
    def readable_rows(self) -> RowTable:
        """The row table. Raises DamagedCacheError if it cannot be read."""
        if self.rows is None:
            raise DamagedCacheError(
                "its row table cannot be read, so that no image can be shown", where=self.path
            )
        return self.rows


def gather_contents(config: Config, *, is_configured: bool = True) -> Contents:
    """Look at a cache, also if it is damaged or incomplete.

    is_configured: whether it is to be what the configuration would build. Raises NotACacheError
    if there is none.
    """
    path = config.cache.path
    declared = declared_recipes(config.encode) if is_configured else None
    root = root_attributes(path)
    rows, names, columns, faults = look_through(path, lambda names: _look(path, names, declared))
    texts, captions, more = _captions(path, declared)
    fingerprints = {held.name: held.column.fingerprint for held in (*columns, *texts)}
    return Contents(
        path=path,
        root=root,
        rows=rows,
        columns=tuple(columns),
        unreadable=tuple(name for name in names if name not in fingerprints),
        missing=tuple(name for name in declared or () if name not in {*names, *fingerprints}),
        runs=tuple(find_uses(config.train.run.parent, fingerprints, rows)),
        faults=(*faults, *more),
        texts=tuple(texts),
        captions=captions,
    )


def _captions(
    path: Place, declared: Mapping[str, Recipe] | None
) -> tuple[list[CachedColumn], tuple[int, int, int] | None, list[Fault]]:
    """Columns of texts, the numbers of texts, of images with captions and of captions, faults."""
    texts = path / CAPTIONS
    if not has_texts(path):
        return [], None, []
    own = declared and {name.removeprefix(f"{CAPTIONS}/"): one for name, one in declared.items()}
    rows, _, columns, faults = look_through(texts, lambda names: _look(texts, names, own))
    known = [replace(fault, where=f"{CAPTIONS}/{fault.where}") for fault in faults]
    counts = None
    if rows is not None:
        try:
            links = read_links(path, rows)
            counts = len(rows), len(links.key), len(links.text)
        except DamagedCacheError as error:
            known.append(Fault(f"{CAPTIONS}/{LINKS}", error.what, Remedy.REPAIR))
    return [replace(held, is_of_texts=True) for held in columns], counts, known


def _look(
    path: Place, names: Sequence[str], declared: Mapping[str, Recipe] | None
) -> tuple[RowTable | None, Sequence[str], list[CachedColumn], list[Fault]]:
    """The rows, if they can be read; names of columns; those that can be read; what is wrong.

    declared: what the columns are to be, or None if nothing is configured.
    """
    faults, rows = list(survey(path).faults), _rows(path)
    columns = [column for name in names if (column := _column(path, name, rows)) is not None]
    known = [
        _held_column(column, rows, {} if declared is None else declared.get(column.name), faults)
        for column in columns
    ]
    return rows, names, known, faults


def _rows(path: Place) -> RowTable | None:
    try:
        return read_stored_rows(path).rows
    except DamagedCacheError:
        return None


def _column(path: Place, name: str, rows: RowTable | None) -> Column | None:
    try:
        return read_column(path, name, 0 if rows is None else len(rows))
    except DamagedCacheError:
        return None


def _held_column(
    column: Column, rows: RowTable | None, declared: Recipe | None, faults: list[Fault]
) -> CachedColumn:
    """What a cache holds of a column. faults: takes those that its files show."""
    missing = set() if rows is None else set(ledger.missing(column, rows))
    finished = [shard for shard in range(column.shards) if shard not in missing]
    there, invalid = np.zeros(column.rows, np.bool_), 0
    for shard in finished:
        if broken := list(_broken_files(column, shard)):
            faults += broken
            continue
        span = column.shard_rows(shard)
        content = column.shard_path(VALID, shard).read_bytes()
        valid = np.frombuffer(content, np.uint8, len(span)) != 0
        there[span.start : span.stop] = valid
        invalid += int((~valid).sum())
    wanted = None if declared is None else {**column.recipe, **declared}
    return CachedColumn(
        column=column,
        there=there,
        finished=len(finished),
        invalid=invalid,
        disk_bytes=_disk_bytes(column.folder),
        provenance=read_group(column.folder).get("provenance", {}),
        changes=None if wanted is None else recipe_differences(column.recipe, wanted),
    )


def _disk_bytes(folder: Place) -> int:
    """What the files in a folder take; some may vanish meanwhile, as a build is at work."""
    if isinstance(folder, StorePath):
        return folder.tree_bytes()
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(FileNotFoundError):
                total += (Path(parent) / file).stat().st_size
    return total


def _broken_files(column: Column, shard: int) -> Iterator[Fault]:
    """The files of a finished shard that are missing, or not as long as they have to be."""
    for array in column.arrays:
        path = column.shard_path(array, shard)
        if not path.is_file():
            what = "its file is missing"
        elif not array.is_compressed and path.stat().st_size != column.shard_bytes(array, shard):
            what = f"its file has {path.stat().st_size:,} bytes"
        else:
            continue
        where = f"{column.name}/{array.name} shard {shard}"
        yield Fault(where, what, Remedy.REPAIR, column.name, shard)


def encoder_of(column: str) -> str:
    """The encoder whose tokens a column holds."""
    return column.removeprefix(FEATURES)
