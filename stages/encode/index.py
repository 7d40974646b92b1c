"""Which images a data set holds: keys, labels and content hashes."""

from collections.abc import Mapping
from concurrent.futures import Executor

import numpy as np

from cache.rows import UNREADABLE, RowTable, content_hash
from stages.encode.crops import unreadable
from stages.encode.sources import Source
from stages.progress import progress

# Images looked at by one task of the pool.
TASK_IMAGES = 256

Known = Mapping[str, tuple[int, tuple[int, int]]]


def index(
    source: Source, cached: RowTable | None, pool: Executor, *, skip: bool = False
) -> RowTable:
    """The rows of a data set in its own order.

    cached: the rows of an earlier index; files whose stamp (size and time of change) is the same
    as then are not read again; skip: give a file that cannot be read the hash `UNREADABLE`
    rather than raising ImageError.
    """
    known = _known(cached)

    def look_at(start: int) -> list[tuple[int, tuple[int, int]]]:
        found = []
        for position in range(start, min(start + TASK_IMAGES, len(source.keys))):
            stamp = source.stamp(position)
            before, digest = known.get(source.keys[position], (0, (0, 0)))
            if not stamp or stamp != before or digest == UNREADABLE:
                digest = _hash_of(source, position, skip=skip)
            found.append((stamp, digest))
        return found

    entries: list[tuple[int, tuple[int, int]]] = []
    with progress("index", len(source.keys), "images") as advance:
        for some in pool.map(look_at, range(0, len(source.keys), TASK_IMAGES)):
            entries += some
            advance(len(some), "")
    return RowTable(
        key=np.array(source.keys, dtype=np.dtypes.StringDType()),
        label=source.labels,
        source_index=np.arange(len(source.keys)),
        content_hash=np.array([digest for _, digest in entries], np.uint64),
        stamp=np.array([stamp for stamp, _ in entries], np.uint64),
        classes=source.classes,
    )


def _hash_of(source: Source, position: int, *, skip: bool) -> tuple[int, int]:
    try:
        return content_hash(source.read(position))
    except (OSError, ValueError) as error:
        if skip:
            return UNREADABLE
        raise unreadable(source.keys[position], error) from error


def _known(cached: RowTable | None) -> Known:
    """Stamp and content hash of every key that was indexed before."""
    if cached is None:
        return {}
    hashes = map(tuple, cached.content_hash.tolist())
    return dict(
        zip(cached.key.tolist(), zip(cached.stamp.tolist(), hashes, strict=True), strict=True)
    )
