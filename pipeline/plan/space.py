"""Bytes and files of a cache, against the room on its disk.

N rows.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.layout import LEDGER, ArraySpec
from cache.sizes import Size, metadata_sizes, shards_size
from cache.stores.places import Place
from stages.encode.building.provenance import provenance
from stages.encode.measuring.foresight import ForeseenColumn, Images

# What lossless compression leaves of crops of photographs, where none can be looked at.
PHOTOGRAPHS_COMPRESSED = 0.44


@dataclass(frozen=True)
class ArraySpace:
    """An array of a column on disk.

    whole: of all its shards; missing: of those that a build has to write; most: bytes of these
    if nothing can be compressed, for which a build wants room before it begins.
    """

    column: str
    array: ArraySpec
    whole: Size
    missing: Size
    most_bytes: int


@dataclass(frozen=True)
class Space:
    """A cache on disk.

    arrays: of all columns, checksums and ledgers among them; metadata, missing_metadata:
    everything else, and what is not there yet; compressed: what compression leaves of crops;
    folder: where the cache is or will be, or the nearest above; free_bytes: on its disk, or None in
    a store, which has room for everything.
    """

    arrays: tuple[ArraySpace, ...]
    metadata: Size
    missing_metadata: Size
    compressed: float
    folder: Place
    free_bytes: int | None

    @property
    def whole(self) -> Size:
        """The finished cache."""
        return sum((one.whole for one in self.arrays), self.metadata)

    @property
    def missing(self) -> Size:
        """What a build has to write."""
        return sum((one.missing for one in self.arrays), self.missing_metadata)

    @property
    def needed_bytes(self) -> int:
        """The room that a build wants before it begins: as if nothing could be compressed."""
        return sum(one.most_bytes for one in self.arrays) + self.missing_metadata.bytes

    @property
    def fits(self) -> bool:
        """Whether there is that room."""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes


def find_space(
    path: Place,
    foreseen: Sequence[ForeseenColumn],
    images: Images,
    compressed: float = PHOTOGRAPHS_COMPRESSED,
) -> Space:
    """The space that a cache takes.

    path: of the cache; compressed: what compression leaves of crops.
    """
    columns = [one.column for one in foreseen]
    metadata = metadata_sizes(columns, images.table, images.count, provenance)
    missing = [size for name, size in metadata.items() if not (path / name.as_posix()).exists()]
    folder, free = path.parent, None
    if isinstance(path, Path):
        folder = next(parent for parent in path.resolve().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
    return Space(
        arrays=tuple(space for one in foreseen for space in _arrays(one, compressed)),
        metadata=sum(metadata.values(), Size()),
        missing_metadata=sum(missing, Size()),
        compressed=compressed,
        folder=folder,
        free_bytes=free,
    )


def _arrays(foreseen: ForeseenColumn, compressed: float) -> Iterator[ArraySpace]:
    column = foreseen.column
    lacking = foreseen.missing_rows, foreseen.missing_shards
    compressed = compressed if foreseen.stored is None else foreseen.stored
    for array in (*column.arrays, column.crc32c, LEDGER):
        yield ArraySpace(
            column.name,
            array,
            whole=shards_size(column, array, column.rows, column.shards, compressed),
            missing=shards_size(column, array, *lacking, compressed),
            most_bytes=shards_size(column, array, *lacking, foreseen.stored or 1.0).bytes,
        )


def exported_space(space: Space) -> dict[str, Any]:
    """It in values that JSON has."""
    arrays = [
        {
            "column": one.column,
            "array": one.array.name,
            "dtype": one.array.dtype,
            "row_shape": list(one.array.row_shape),
            "whole": asdict(one.whole),
            "missing": asdict(one.missing),
        }
        for one in space.arrays
    ]
    return {
        "arrays": arrays,
        "metadata": {"whole": asdict(space.metadata), "missing": asdict(space.missing_metadata)},
        "whole": asdict(space.whole),
        "missing": asdict(space.missing),
        "compressed": space.compressed,
        "needed_bytes": space.needed_bytes,
        "free_bytes": space.free_bytes,
        "folder": str(space.folder),
        "fits": space.fits,
    }
