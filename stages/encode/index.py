"""Which images a data set holds: keys, labels and content hashes."""

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from cache.keys import Keys, find_keys
from cache.rows import UNREADABLE, RowTable, content_hash
from stages.encode.crops import unreadable
from stages.encode.sources import Source
from stages.encode.sources.key_list import key_array
from stages.progress import progress

# Images looked at by one task of the pool.
TASK_IMAGES = 256


def index(
    source: Source, cached: RowTable | None, pool: Executor, *, skip: bool = False
) -> RowTable:
    """The rows of a data set in its own order.

    cached: the rows of an earlier index; files whose stamp (size and time of change) is the same
    as then are not read again; skip: give a file that cannot be read the hash `UNREADABLE`
    rather than raising ImageError.
    """
    keys = key_array(source.keys)
    # As they were, to be replaced by what is found: by zeros where nothing is known.
    stamps, hashes = _known(keys, cached)

    def look_at(start: int) -> int:
        span = slice(start, min(start + TASK_IMAGES, len(keys)))
        places = range(span.start, span.stop)
        found = np.array([_stamp_of(source, place) for place in places], np.uint64)
        is_known = (found != 0) & (found == stamps[span]) & hashes[span].any(axis=1)
        stamps[span] = found
        for place in (start + np.flatnonzero(~is_known)).tolist():
            hashes[place] = _hash_of(source, place, skip=skip)
        return len(found)

    with progress("index", len(keys), "images") as advance:
        for count in pool.map(look_at, range(0, len(keys), TASK_IMAGES)):
            advance(count, "")
    return RowTable(
        key=keys,
        label=source.labels,
        source_index=np.arange(len(keys)),
        content_hash=hashes,
        stamp=stamps,
        classes=source.classes,
    )


def _known(
    keys: Keys, cached: RowTable | None
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Stamp and content hash of every key, as far as they were indexed before."""
    stamps, hashes = np.zeros(len(keys), np.uint64), np.zeros((len(keys), 2), np.uint64)
    if cached is not None:
        place = find_keys(cached.key, keys, cached.source_index)
        is_there = place >= 0
        stamps[place[is_there]] = cached.stamp[is_there]
        hashes[place[is_there]] = cached.content_hash[is_there]
    return stamps, hashes


def _stamp_of(source: Source, position: int) -> int:
    try:
        return source.stamp(position)
    except OSError:
        # Reading it tells what is the matter with the file.
        return 0


def _hash_of(source: Source, position: int, *, skip: bool) -> tuple[int, int]:
    try:
        return content_hash(source.read(position))
    except (OSError, ValueError) as error:
        if skip:
            return UNREADABLE
        raise unreadable(source.keys[position], error) from error
