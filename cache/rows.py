"""The row table: which image is which row.

Rows are identified by key and content hash, never by their position in a listing. They lie
in a fixed random permutation of the source's order, so that even a block-wise reader sees
well-mixed batches. Images that are added later follow, in a permutation of their own.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from cache.errors import DamagedCacheError, RowsChangedError
from cache.files import atomic_folder
from cache.metadata import create_root, read_group
from cache.order import block_permutation

# The table is read whole; a few large chunks keep the number of files small.
CHUNK_ROWS = 65536
NAMED_KEYS = 5
FIELDS = ("key", "label", "source_index", "content_hash", "stamp")


# The content hash of a file that could not be read.
UNREADABLE = (0, 0)


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

    key: npt.NDArray[Any]
    label: npt.NDArray[np.int32]
    source_index: npt.NDArray[np.int64]
    content_hash: npt.NDArray[np.uint64]
    stamp: npt.NDArray[np.uint64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Number of rows."""
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
        is_same = (np.array_equal(getattr(self, name), getattr(other, name)) for name in FIELDS)
        return self.classes == other.classes and all(is_same)

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything training sees of the rows: order, keys, labels, images."""
        digest = hashlib.sha256("\0".join([*self.classes, *self.key.tolist()]).encode())
        digest.update(self.label.astype("<i4", copy=False).tobytes())
        digest.update(self.digest(range(len(self))))
        return digest.hexdigest()

    def permuted(self, seed: int, block: int = 1) -> "RowTable":
        """These rows in the random permutation that a seed gives.

        block: rows that stay together, because their source gives them together.
        """
        return self.take(block_permutation(len(self), seed, 0, block))

    def take(self, index: npt.NDArray[np.int64]) -> "RowTable":
        """Some rows."""
        return replace(self, **{field: getattr(self, field)[index] for field in FIELDS})


def create_cache(path: Path, rows: RowTable, rows_per_shard: int, seed: int) -> None:
    """Write a new cache without columns at `path`, whole or not at all."""
    with atomic_folder(path) as folder:
        create_root(folder, rows_per_shard, seed)
        _write_table(folder / "rows", rows)


def write_rows(path: Path, rows: RowTable) -> None:
    """Replace the row table of the cache at `path`."""
    with atomic_folder(path / "rows") as folder:
        _write_table(folder, rows)


def _write_table(folder: Path, rows: RowTable) -> None:
    attributes: dict[str, Any] = {
        "classes": list(rows.classes),
        "fingerprint": rows.fingerprint,
    }
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


def read_rows(path: Path) -> RowTable:
    """The row table of the cache at `path`. Raises DamagedCacheError if it was altered."""
    rows = read_unchecked_rows(path)
    if rows.fingerprint != read_group(path / "rows").get("fingerprint"):
        raise DamagedCacheError(
            f"{path / 'rows'}: keys, labels or content hashes were edited. "
            "Run `repa-cache build --repair` to take them from the data set again."
        )
    return rows


def read_unchecked_rows(path: Path) -> RowTable:
    """The row table, also if it was edited. Raises DamagedCacheError if it cannot be read."""
    attributes = read_group(path / "rows")
    try:
        group = zarr.open_group(path / "rows", mode="r")
        columns: dict[str, Any] = {name: group[name][:] for name in FIELDS}  # type: ignore[index]
        return RowTable(**columns, classes=tuple(attributes["classes"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedCacheError(
            f"{path / 'rows'} cannot be read: {error}. Run `repa-cache build --repair`."
        ) from error


@dataclass(frozen=True)
class RowChanges:
    """How a data set differs from a row table: keys of images, in the table's or its order.

    new_classes, lost_classes: names of classes that only the one or the other has.
    """

    changed: tuple[str, ...]
    vanished: tuple[str, ...]
    added: tuple[str, ...]
    relabelled: tuple[str, ...]
    new_classes: tuple[str, ...] = ()
    lost_classes: tuple[str, ...] = ()

    def check(self, path: Path, *, may_update: bool) -> None:
        """Raise RowsChangedError, naming the images, if rows that are cached cannot be kept.

        may_update: whether changed and relabelled images may be taken over.
        """
        lost = {"vanished": self.vanished}
        altered = {"changed": self.changed, "labelled otherwise": self.relabelled}
        kinds = lost if may_update else {**altered, **lost}
        if listing := "; ".join(f"{len(k)} {what}: {_named(k)}" for what, k in kinds.items() if k):
            update = "" if self.vanished else "take them over (`repa-cache build --update`), "
            raise RowsChangedError(
                f"The data set is not the one {path} was built from ({listing}). "
                f"{self._why_labels_moved}"
                f"Restore the images, {update}or build another cache (cache.path)."
            )

    @property
    def _why_labels_moved(self) -> str:
        """Which classes came or went, since each moves the labels of those behind it."""
        kinds = {"new": self.new_classes, "gone": self.lost_classes}
        listing = "; ".join(f"{what}: {_named(names)}" for what, names in kinds.items() if names)
        if not (self.relabelled and listing):
            return ""
        return (
            f"Its classes are others ({listing}), which moves labels: runs that were trained go by "
            "the earlier ones. " + ("Take out what is no class. " if self.new_classes else "")
        )


def compare(cached: RowTable, current: RowTable) -> RowChanges:
    """How the data set that `current` lists differs from the rows of a cache."""
    old = {key: i for i, key in enumerate(cached.key.tolist())}
    new = {key: i for i, key in enumerate(current.key.tolist())}
    common = [key for key in old if key in new]
    here, there = [old[key] for key in common], [new[key] for key in common]
    changed = (cached.content_hash[here] != current.content_hash[there]).any(axis=1)
    names = np.array([*cached.classes, *current.classes], dtype=np.dtypes.StringDType())
    label = current.label[there] + len(cached.classes)
    relabelled = (cached.label[here] != current.label[there]) | (
        names[cached.label[here]] != names[label]
    )
    return RowChanges(
        changed=tuple(np.array(common, object)[changed]),
        vanished=tuple(key for key in old if key not in new),
        added=tuple(key for key in new if key not in old),
        relabelled=tuple(np.array(common, object)[relabelled]),
        new_classes=_without(current.classes, cached.classes),
        lost_classes=_without(cached.classes, current.classes),
    )


def merged(cached: RowTable, current: RowTable, seed: int, block: int = 1) -> RowTable:
    """The rows of a cache as the data set has them, in the cache's order, and the added ones.

    Every key of `cached` has to be in `current`. block: as in `RowTable.permuted`.
    """
    new = {key: i for i, key in enumerate(current.key.tolist())}
    kept = [new.pop(key) for key in cached.key.tolist()]
    added = np.array(list(new.values()), np.int64)
    # Numbered by where it begins, so that no two additions are permuted alike.
    shuffled = added[block_permutation(len(added), seed, len(cached), block)]
    return current.take(np.concatenate([np.array(kept, np.int64), shuffled]))


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    known = frozenset(others)
    return tuple(name for name in names if name not in known)


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return ", ".join(keys[:NAMED_KEYS]) + more
