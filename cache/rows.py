"""The row table: which image is which row.

Rows are identified by key and content hash, never by their position in a listing. They lie
in a fixed random permutation of the source's order, so that even a block-wise reader sees
well-mixed batches.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
import zarr

from cache.errors import RowsChangedError
from cache.files import atomic_folder
from cache.layout import create_root
from cache.order import permutation

# The table is read whole; a few large chunks keep the number of files small.
CHUNK_ROWS = 65536
NAMED_KEYS = 5


def content_hash(content: bytes) -> tuple[int, int]:
    """The 128-bit XXH3 hash of an image file, as two unsigned 64-bit numbers."""
    value = xxhash.xxh3_128_intdigest(content)
    return value >> 64, value & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class RowTable:
    """All rows of a cache.

    key: [N] strings; label: [N] int32; source_index: [N] int64, position in the source's
    listing; content_hash: [N, 2] uint64; classes: a name per label.
    """

    key: npt.NDArray[Any]
    label: npt.NDArray[np.int32]
    source_index: npt.NDArray[np.int64]
    content_hash: npt.NDArray[np.uint64]
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

    @staticmethod
    def permuted(
        keys: Sequence[str],
        labels: npt.NDArray[np.int32],
        hashes: npt.NDArray[np.uint64],
        classes: tuple[str, ...],
        seed: int,
    ) -> "RowTable":
        """The table for a source's listing, in the random permutation given by `seed`."""
        index = permutation(len(keys), seed)
        key = np.array(keys, dtype=np.dtypes.StringDType())
        return RowTable(key[index], labels[index], index, hashes[index], classes)


def create_cache(path: Path, rows: RowTable, rows_per_shard: int, seed: int) -> None:
    """Write a new cache without columns at `path`, whole or not at all."""
    with atomic_folder(path) as folder:
        root = create_root(folder, len(rows), rows_per_shard, seed)
        group = root.create_group("rows", attributes={"classes": list(rows.classes)})
        for name in ("key", "label", "source_index", "content_hash"):
            values = getattr(rows, name)
            array = group.create_array(
                name,
                shape=values.shape,
                chunks=(min(len(rows), CHUNK_ROWS), *values.shape[1:]),
                dtype="string" if name == "key" else values.dtype,
            )
            array[:] = values


def read_rows(path: Path) -> RowTable:
    """The row table of the cache at `path`."""
    group = zarr.open_group(path / "rows", mode="r")
    columns: dict[str, Any] = {
        name: group[name][:]  # type: ignore[index]  # every member of this group is an array
        for name in ("key", "label", "source_index", "content_hash")
    }
    classes: Any = group.attrs["classes"]
    return RowTable(**columns, classes=tuple(classes))


def check_same_rows(path: Path, cached: RowTable, current: RowTable) -> None:
    """Raise RowsChangedError, naming the images, unless both tables hold the same rows."""
    old = {key: i for i, key in enumerate(cached.key.tolist())}
    new = {key: i for i, key in enumerate(current.key.tolist())}
    common = [key for key in old if key in new]
    changes = {
        "changed": [k for k in common if cached.hash_of(old[k]) != current.hash_of(new[k])],
        "vanished": [key for key in old if key not in new],
        "new": [key for key in new if key not in old],
        "labelled otherwise": [k for k in common if cached.label[old[k]] != current.label[new[k]]],
    }
    if any(changes.values()):
        listing = "; ".join(f"{len(k)} {what}: {_named(k)}" for what, k in changes.items() if k)
        raise RowsChangedError(
            f"The data set is not the one {path} was built from ({listing}). "
            "Restore the images, or build another cache (cache.path)."
        )


def _named(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return ", ".join(keys[:NAMED_KEYS]) + more
