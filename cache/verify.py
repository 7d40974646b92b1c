"""Looking for everything that can be wrong with a cache, and what mends it.

The chain of evidence: the row table has a fingerprint over keys, labels and content hashes; a
ledger entry names the images of its shard and seals the shard's checksums together with the
column's recipe; the checksums cover every byte of every row; whatever else is in a shard's file
(index, padding) is known beforehand.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import zarr

from cache import ledger
from cache.captions import CAPTIONS, LINKS, has_texts, read_links
from cache.errors import DamagedCacheError
from cache.file_layout import find_layout
from cache.files import Version, versions
from cache.layout import LEDGER, ROWS, ArraySpec, Column, Rows
from cache.metadata import look_through, read_column, root_attributes, source_changes
from cache.rows import read_rows
from cache.storage import decompress, finite_rows, row_checksums, unwarned
from cache.stores.places import Place, for_zarr, reported
from cache.writer import shard_tail

# Rows are read for checking in pieces of about this size.
PIECE_BYTES = 16 << 20


class Remedy(StrEnum):
    """What to do about a fault."""

    BUILD = "repa-cache build"
    REPAIR = "repa-cache build --repair"
    REBUILD = "repa-cache build --rebuild NAME"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what, and the command that mends it.

    column, shard: which, as far as one shard or column is concerned.
    """

    where: str
    what: str
    remedy: Remedy
    column: str | None = None
    shard: int | None = None


@dataclass(frozen=True)
class Finished:
    """A shard that counts as finished. entry: of the ledger; table: version of the row table."""

    column: Column
    shard: int
    entry: bytes
    table: tuple[Version, ...]

    @property
    def is_outdated(self) -> bool:
        """Whether it, or the row table, was made anew since."""
        column = self.column
        is_same = versions(column.cache / ROWS) == self.table
        return not is_same or ledger.entry(column, self.shard) != self.entry


@dataclass
class Survey:
    """What can be said of a cache without reading its shards.

    shards: those that remain to be checked.
    """

    shards: list[Finished] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


# Says what is done and how much there is of it; what it enters is told of each part that is done.
Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int, str], object]]]


def silent(_title: str, _total: int, _unit: str) -> AbstractContextManager[Callable[..., object]]:
    """Shows nothing."""
    return nullcontext(lambda *_: None)


def find_all_faults(path: Place, threads: int, progress: Progress = silent) -> list[Fault]:
    """All faults of the cache at a path, those of its captions included."""
    faults = find_faults(path, threads, progress)
    texts = path / CAPTIONS
    if not has_texts(path):
        return faults
    for fault in find_faults(texts, threads, progress):
        column = fault.column and f"{CAPTIONS}/{fault.column}"
        faults.append(replace(fault, where=f"{CAPTIONS}/{fault.where}", column=column))
    with suppress(DamagedCacheError):
        rows = read_rows(texts)
        try:
            read_links(path, rows)
        except DamagedCacheError as error:
            faults.append(Fault(f"{CAPTIONS}/{LINKS}", error.what, Remedy.REPAIR))
    return faults


def find_faults(path: Place, threads: int, progress: Progress = silent) -> list[Fault]:
    """All faults of the images' part, or the texts', of a cache. Reads every byte of it once."""
    found = survey(path)
    faults = list(found.faults)
    total = sum(len(one.column.shard_rows(one.shard)) for one in found.shards)
    with ThreadPoolExecutor(threads) as pool, progress("verify", total, "rows") as advance:
        checks = pool.map(check_shard, found.shards)
        for finished, some in zip(found.shards, checks, strict=True):
            faults += some
            advance(len(finished.column.shard_rows(finished.shard)), "")
    return faults


def survey(path: Place) -> Survey:
    """Check the row table, the metadata of every column, and completeness.

    As of one moment: what a build replaces or adds meanwhile is no fault.
    """
    root_attributes(path)
    return look_through(path, lambda names: _survey(path, names))


def _survey(path: Place, names: Sequence[str]) -> Survey:
    found, table = Survey(), versions(path / ROWS)
    try:
        rows = read_rows(path)
    except DamagedCacheError as error:
        found.faults.append(Fault(ROWS, error.what, Remedy.REPAIR))
        return found
    for name in names:
        try:
            column = read_column(path, name, len(rows))
        except DamagedCacheError as error:
            found.faults.append(Fault(name, error.what, Remedy.REPAIR, name))
            continue
        found.faults += _metadata_faults(column)
        if source_changes(column):
            what = f"it was made of {column.recipe['source']} as that was once"
            found.faults.append(Fault(name, what, Remedy.REBUILD, name))
        recorded = ledger.Recorded.of(column)
        missing, entries = recorded.missing(rows), recorded.entries
        found.faults += _completeness_faults(column, missing, entries)
        finished = sorted(set(range(column.shards)) - set(missing))
        found.shards += [Finished(column, shard, entries[shard], table) for shard in finished]
    return found


def _metadata_faults(column: Column) -> Iterator[Fault]:
    """Arrays whose metadata is not what the column's attributes imply."""
    for spec in (*column.arrays, column.crc32c, LEDGER):
        where = f"{column.name}/{spec.name}"
        rows = column.shards if spec is LEDGER else column.rows
        per_file = 1 if spec is LEDGER else column.rows_per_shard
        try:
            place = column.folder / spec.name
            with unwarned(), reported(place):
                array = zarr.open_array(**for_zarr(place), mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Fault(where, f"its zarr.json cannot be read: {error}", Remedy.REPAIR, column.name)
            continue
        layout = find_layout(array)
        per_chunk = 1 if spec.is_sharded else per_file
        expected = (spec.row_shape, spec.dtype, per_file, per_chunk)
        is_as_written = layout is not None and expected == (
            array.shape[1:],
            str(array.dtype),
            layout.rows_per_file,
            layout.rows_per_chunk,
        )
        if not is_as_written or array.shape[0] > rows:
            yield Fault(where, "its zarr.json was edited", Remedy.REPAIR, column.name)


def _completeness_faults(
    column: Column, missing: Sequence[int], entries: Mapping[int, bytes]
) -> Iterator[Fault]:
    if missing:
        what = f"{len(missing)} of {column.shards} shards are not finished"
        yield Fault(column.name, what, Remedy.BUILD, column.name)
    for shard in missing:
        if shard in entries:
            yield _to_build(column, shard, "its ledger entry is of other images")
        elif column.shard_path(column.arrays[0], shard).exists():
            yield _to_build(column, shard, "its file is there, but it has no ledger entry")


def _to_build(column: Column, shard: int, what: str) -> Fault:
    return Fault(f"{column.name} shard {shard}", what, Remedy.BUILD, column.name, shard)


def check_shard(finished: Finished) -> list[Fault]:
    """Compare all that lies on disk of a finished shard with its ledger entry.

    What a build makes anew meanwhile is looked at again.
    """
    column, shard = finished.column, finished.shard
    faults = [
        Fault(f"{where} shard {shard}", what, Remedy.REPAIR, column.name, shard)
        for where, what in shard_faults(column, shard, finished.entry)
    ]
    if not (faults and finished.is_outdated):
        return faults
    for found in survey(column.cache).shards:
        if (found.column.name, found.shard) == (column.name, shard):
            return check_shard(found)
    return [_to_build(column, shard, "it is being made anew")]


def shard_faults(column: Column, shard: int, entry: bytes) -> Iterator[tuple[str, str]]:
    """In which column or array something is wrong with a shard, and what.

    entry: of the ledger, which all else is held against.
    """
    images, sealed = entry[: ledger.DIGEST_BYTES], entry[ledger.DIGEST_BYTES :]
    try:
        is_sealed = ledger.seal(column, shard, images) == sealed
        content = column.shard_path(column.crc32c, shard).read_bytes()
    except FileNotFoundError:
        yield column.name, "the file of its checksums is missing"
        return
    if not is_sealed:
        yield column.name, "the ledger entry does not fit its checksums and recipe"
        return
    # A shard's file holds checksums of all its rows and arrays, [rows_per_shard, arrays].
    checksums = np.frombuffer(content, "<u4").reshape(column.rows_per_shard, -1)
    for position, array in enumerate(column.arrays):
        for what in _file_faults(column, array, shard, checksums[:, position]):
            yield f"{column.name}/{array.name}", what


def _file_faults(
    column: Column, array: ArraySpec, shard: int, checksums: npt.NDArray[np.uint32]
) -> Iterator[str]:
    """What is wrong with the file of one shard of one array."""
    path, count = column.shard_path(array, shard), len(column.shard_rows(shard))
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            yield "its file is missing"
            return
        found, expected = file.seek(0, os.SEEK_END), column.shard_bytes(array, shard)
        file.seek(0)
        if found != expected and not array.is_compressed:
            yield f"its file has {found:,} bytes instead of {expected:,}"
            return
        sizes = _row_sizes(file, column, array, count)
        step = max(1, PIECE_BYTES // array.row_bytes)
        for start in range(0, count, step):
            span = slice(start, min(start + step, count))
            rows = _read_in_order(file, array, sizes[span])
            if wrong := int((row_checksums(rows) != checksums[span]).sum()):
                yield f"checksums differ in {wrong} of its rows {span.start} to {span.stop - 1}"
            elif not finite_rows(rows).all():
                yield "it holds NaN or infinity"
        if file.read() != shard_tail(column, array, sizes):
            yield "its index or padding is damaged"


def _row_sizes(file: BinaryIO, column: Column, array: ArraySpec, count: int) -> list[int]:
    """The bytes in the file of each row, as far as the file's index can be believed."""
    if not array.is_compressed:
        return [array.row_bytes] * count
    file.seek(max(file.seek(0, os.SEEK_END) - column.index_bytes, 0))
    index = np.frombuffer(file.read()[: 16 * count], "<u8")
    file.seek(0)
    sizes: list[int] = np.minimum(index[1::2], 2 * array.row_bytes).tolist()
    return [*sizes, *([0] * (count - len(sizes)))]


def _read_in_order(file: BinaryIO, array: ArraySpec, sizes: Sequence[int]) -> Rows:
    """The next rows of a file; zeros where a row cannot be decompressed."""
    rows = np.zeros((len(sizes), *array.row_shape), array.dtype)
    if not array.is_compressed:
        file.readinto(rows.reshape(-1).view(np.uint8).data)  # type: ignore[attr-defined]
        return rows
    for row, size in zip(rows, sizes, strict=True):
        with suppress(ValueError):
            decompress(file.read(size), row)
    return rows
