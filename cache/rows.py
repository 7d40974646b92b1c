"""The row table: which image is which row.

Rows are identified by key and content hash, never by their position in a listing. They lie
in a fixed random permutation of the source's order, so that even a block-wise reader sees
well-mixed batches. Images that are added later follow, in a permutation of their own.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from cache.errors import DamagedCacheError
from cache.files import Version, atomic_folder, of_one_version, standing, versions
from cache.layout import ROWS
from cache.metadata import create_root, read_group
from cache.order import block_permutation
from cache.stores.places import Place, for_zarr, reported

Keys = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

# Keys that are copied, or are Python's strings, at the same time.
PIECE = 65536
# The table is read whole; a few large chunks keep the number of files small.
CHUNK_ROWS = 65536
NUMBERS = ("label", "source_index", "content_hash", "stamp")
FIELDS = ("key", *NUMBERS)
# Those that training sees.
SEEN = ("key", "label", "content_hash")
# The content hash of a file that could not be read.
UNREADABLE = (0, 0)


def pieces(count: int) -> Iterator[slice]:
    """Some keys after the other."""
    return (slice(start, start + PIECE) for start in range(0, count, PIECE))


def find_keys(keys: Keys, among: Keys, likely: Places) -> Places:
    """Where each of some keys, [K], is among others, [N]: positions [K], -1 for none.

    Both are unique. likely: positions [K] to look at first, which is much faster than searching.
    """
    found = np.clip(likely, 0, len(among) - 1)
    if not len(among):
        return np.full(len(keys), -1, np.int64)
    for piece in pieces(len(keys)):
        found[piece][among[found[piece]] != keys[piece]] = -1
    left = np.flatnonzero(found < 0)
    found[left] = _search(keys[left], among)
    return found


def _search(keys: Keys, among: Keys) -> Places:
    """The same without a hint."""
    found = np.full(len(keys), -1, np.int64)
    if not len(keys):
        return found
    hashes = _hashes(among)
    order = np.argsort(hashes)
    hashes = hashes[order]
    own, left = _hashes(keys), np.arange(len(keys))
    place = np.searchsorted(hashes, own)
    while True:
        # Other keys may have the same hash: those behind are looked at next.
        is_possible = hashes[np.minimum(place, len(among) - 1)] == own
        is_possible &= place < len(among)
        left, own, place = left[is_possible], own[is_possible], place[is_possible]
        if not len(left):
            return found
        for piece in pieces(len(left)):
            here, there = left[piece], order[place[piece]]
            is_right = among[there] == keys[here]
            found[here[is_right]] = there[is_right]
        is_open = found[left] < 0
        left, own, place = left[is_open], own[is_open], place[is_open] + 1


def _hashes(keys: Keys) -> Places:
    parts = (keys[piece].tolist() for piece in pieces(len(keys)))
    return np.fromiter((hash(key) for part in parts for key in part), np.int64, len(keys))


def content_hash(content: bytes) -> tuple[int, int]:
    """The 128-bit XXH3 hash of an image file, as two unsigned 64-bit numbers."""
    value = xxhash.xxh3_128_intdigest(content)
    return value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class RowTable:
    """All rows of a cache.

    key: [N] strings; label: [N] int32; source_index: [N] int64, position in the source's
    listing; content_hash: [N, 2] uint64; stamp: [N] uint64, what tells cheaply that a file is
    the one that was hashed, 0 where nothing does; classes: a name per label.
    """

    key: Keys
    label: npt.NDArray[np.int32]
    source_index: npt.NDArray[np.int64]
    content_hash: npt.NDArray[np.uint64]
    stamp: npt.NDArray[np.uint64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    def hash_of(self, row: int) -> tuple[int, int]:
        """The content hash of a row, as `content_hash` gives it."""
        high, low = self.content_hash[row].tolist()
        return high, low

    def digest(self, rows: range) -> bytes:
        """The sha256 of the content hashes of some rows: which images they are."""
        hashes = self.content_hash[rows.start : rows.stop].astype("<u8", copy=False)
        return hashlib.sha256(hashes.tobytes()).digest()

    def equals(self, other: "RowTable") -> bool:
        """Whether both hold the same, stamps included."""
        is_same = (np.array_equal(getattr(self, name), getattr(other, name)) for name in NUMBERS)
        return self.looks_like(other) and all(is_same)

    def looks_like(self, other: "RowTable") -> bool:
        """Whether training sees the same of both: order, keys, labels, images."""
        return self.classes == other.classes and len(self) == len(other) and self.begins_with(other)

    def begins_with(self, other: "RowTable") -> bool:
        """Whether training sees the other rows at the beginning of these."""
        head = slice(len(other))
        is_same = (np.array_equal(getattr(self, name)[head], getattr(other, name)) for name in SEEN)
        return self.classes[: len(other.classes)] == other.classes and all(is_same)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything training sees of the rows: order, keys, labels, images."""
        digest, separator = hashlib.sha256(), b""
        keys = (self.key[piece].tolist() for piece in pieces(len(self)))
        for names in chain([self.classes], keys):
            if names:
                digest.update(separator + "\0".join(names).encode())
                separator = b"\0"
        digest.update(self.label.astype("<i4", copy=False).tobytes())
        digest.update(self.digest(range(len(self))))
        return digest.hexdigest()

    def permuted(self, seed: int, block: int = 1) -> "RowTable":
        """These rows in the random permutation that a seed gives.

        block: rows that stay together, because their source gives them together.
        """
        return self.take(block_permutation(len(self), seed, 0, block))

    def take(self, index: npt.NDArray[np.int64]) -> "RowTable":
        return replace(self, **{field: getattr(self, field)[index] for field in FIELDS})


def create_cache(path: Place, rows: RowTable, rows_per_shard: int, seed: int) -> None:
    """Write a new cache without columns at `path`, whole or not at all."""
    with atomic_folder(path) as folder:
        create_root(folder, rows_per_shard, seed)
        _write_table(folder / ROWS, rows)


def write_rows(path: Place, rows: RowTable) -> None:
    """Replace the row table of the cache at `path`."""
    with atomic_folder(path / ROWS) as folder:
        _write_table(folder, rows)


def _write_table(folder: Path, rows: RowTable) -> None:
    attributes: dict[str, Any] = {"classes": list(rows.classes), "fingerprint": rows.fingerprint}
    group = zarr.open_group(folder, mode="w", zarr_format=3, attributes=attributes)
    for name in FIELDS:
        values = getattr(rows, name)
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(min(len(rows), CHUNK_ROWS), *values.shape[1:]),
            dtype="string" if name == "key" else values.dtype,
            compressors=(ZstdCodec(), Crc32cCodec()),
        )
        array[:] = values


@dataclass(frozen=True)
class StoredRows:
    """A row table as it lay on disk, edited or not.

    fingerprint: as it was stored; version: of its folder.
    """

    rows: RowTable
    fingerprint: object
    version: tuple[Version, ...]


def read_rows(path: Place, known: StoredRows | None = None) -> RowTable:
    """The row table of the cache at `path`. Raises DamagedCacheError if it was altered.

    known: what was read before, which is not read again if it is still there.
    """
    stored = known
    if stored is None or stored.version != versions(path / ROWS):
        stored = read_stored_rows(path)
    if stored.rows.fingerprint != stored.fingerprint:
        raise DamagedCacheError(
            "keys, labels or content hashes were edited",
            where=path / ROWS,
            remedy="Run `repa-cache build --repair` to take them from the data set again.",
        )
    return stored.rows


def read_stored_rows(path: Place) -> StoredRows:
    """The row table, also if it was edited. Raises DamagedCacheError if it cannot be read."""
    folder = path / ROWS

    def read() -> StoredRows:
        version, attributes = versions(folder), read_group(standing(folder))
        with _opened_table(folder) as arrays:
            columns = {name: arrays[name][:] for name in NUMBERS}
            keys = np.empty(arrays["key"].shape, np.dtypes.StringDType())
            # Python's strings, which Zarr makes on the way, take much memory.
            for piece in pieces(len(keys)):
                keys[piece] = arrays["key"][piece]
            rows = RowTable(keys, **columns, classes=tuple(attributes["classes"]))
        return StoredRows(rows, attributes.get("fingerprint"), version)

    return of_one_version(read, folder)


def count_rows(path: Place) -> int:
    """How many rows the cache at `path` has. Raises DamagedCacheError if that cannot be read."""
    folder = path / ROWS

    def count() -> int:
        with _opened_table(folder) as arrays:
            return int(arrays["label"].shape[0])

    return of_one_version(count, folder)


@contextmanager
def _opened_table(folder: Place) -> Iterator[Mapping[str, Any]]:
    """The arrays of the row table in a folder. Raises DamagedCacheError for whatever fails."""
    try:
        with reported(folder):
            group = zarr.open_group(**for_zarr(standing(folder)), mode="r")
            yield {name: group[name] for name in FIELDS}
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedCacheError(f"it cannot be read: {error}", where=folder) from error
