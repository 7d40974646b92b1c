"""Copying single shards between caches: fetched in pieces, checked, and only then part of one.

A shard first lands in a local folder, beside its column on a disk and under TMPDIR on the way to
a store. There its files are held against its ledger entry, byte for byte as `cache.verify` does.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cache import ledger
from cache.errors import CacheReplacedError, CacheWriteError, DamagedCacheError
from cache.files import landing_folder, put_in_place
from cache.layout import LEDGER, ArraySpec, Column
from cache.stores.places import Place, StorePath, for_each
from cache.verify import shard_faults

# What is asked for at once, of several files at the same time.
PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class ColumnCopy:
    """What a copy has to do for a column.

    source, target: the column in both caches; entries: of the ledger, of the shards that are
    finished at the source; missing: the bytes of those of them that the target lacks; replaced:
    shards that the target has, otherwise than the source; is_ahead: whether it has some that are
    not finished there; is_new: whether it has no such column yet.
    """

    source: Column
    target: Column
    entries: Mapping[int, bytes]
    missing: Mapping[int, int]
    replaced: frozenset[int]
    is_ahead: bool
    is_new: bool


def files_of(column: Column) -> tuple[ArraySpec, ...]:
    """The arrays of which each shard has a file, the one last that makes it count."""
    return (*column.arrays, column.crc32c, LEDGER)


def copy_shard(
    copy: ColumnCopy, shard: int, requests: Executor, confirm: Callable[[], None]
) -> None:
    """Copy a shard. Raises DamagedCacheError, before it has changed the target, if it is not whole.

    requests: what waits for the store; confirm: called before the target is written to.
    """
    with landed(copy, shard, requests) as folder:
        confirm()
        put_shard(copy, shard, folder)


@contextmanager
def landed(copy: ColumnCopy, shard: int, requests: Executor) -> Iterator[Path]:
    """A local folder with the files of a shard, which were checked.

    Raises DamagedCacheError that names the shard, CacheReplacedError if it was made anew meanwhile.
    """
    column, entry = copy.source, copy.entries[shard]
    *arrays, last = files_of(column)
    with landing_folder(copy.target.folder, f"shard-{shard}") as folder:
        try:
            with _written(copy.target, shard):
                _fetch(
                    {_file(folder, a, shard): column.shard_path(a, shard) for a in arrays}, requests
                )
                # The one that is known, whatever has become of it.
                _file(folder, last, shard).parent.mkdir()
                _file(folder, last, shard).write_bytes(entry)
            faults = list(shard_faults(replace(column, folder=folder), shard, entry))
        except FileNotFoundError:
            faults = [(column.name, "one of its files is missing")]
        if faults and ledger.entry(column, shard) != entry:
            raise CacheReplacedError("it was made anew while it was copied", where=column.folder)
        if faults:
            listing = "; ".join(f"{where} shard {shard}: {what}" for where, what in faults)
            raise DamagedCacheError(listing, where=column.cache)
        yield folder


def put_shard(copy: ColumnCopy, shard: int, folder: Path) -> None:
    """Make a shard that has landed in a folder part of the target.

    It counts once its last file is there.
    """

    def put(array: ArraySpec) -> None:
        put_in_place(_file(folder, array, shard), copy.target.shard_path(array, shard))

    *arrays, last = files_of(copy.target)
    with _written(copy.target, shard):
        if shard in copy.replaced:
            ledger.strike(copy.target, shard)
        for_each(put, arrays)
        put(last)


def _file(folder: Path, array: ArraySpec, shard: int) -> Path:
    return folder / array.name / array.shard_key(shard)


def _fetch(files: Mapping[Path, Place], requests: Executor) -> None:
    """Copy files to local ones, many pieces at once."""
    sizes = list(requests.map(lambda place: place.stat().st_size, files.values()))
    pieces = []
    for (file, place), size in zip(files.items(), sizes, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        starts = range(0, size, PIECE_BYTES)
        pieces += [(file, place, start, min(PIECE_BYTES, size - start)) for start in starts]
    list(requests.map(lambda piece: _copy_piece(*piece), pieces))


def _copy_piece(file: Path, place: Place, start: int, size: int) -> None:
    if isinstance(place, StorePath):
        content: bytes | memoryview = place.read_range(start, size)
    else:
        with place.open("rb") as source:
            source.seek(start)
            content = source.read(size)
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(content)


@contextmanager
def _written(column: Column, shard: int) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"shard {shard} cannot be written: {error.strerror or error}",
            where=column.folder,
            remedy=(
                "Finished shards are kept; remove the cause and run the same command again. On "
                "their way to a store, shards lie where TMPDIR says."
            ),
        ) from error
