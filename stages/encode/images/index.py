"""Which images a data set holds: keys, labels and content hashes."""

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from cache.keys import Keys, find_keys
from cache.rows import UNREADABLE, RowTable, content_hash
from stages.encode.images.crop_batches import unreadable
from stages.encode.images.sources import Source
from stages.encode.images.sources.key_list import key_array
from stages.encode.images.waiting import in_order
from stages.progress import progress

# Images stamped, and images read, by one task.
STAMPED_IMAGES, READ_IMAGES = 1024, 64
# Images whose stamps are known before the first of them is read.
BLOCK_IMAGES = 16 * STAMPED_IMAGES


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

    def stamp(start: int) -> npt.NDArray[np.int64]:
        """Those of the images from `start` on that have to be read."""
        span = slice(start, min(start + STAMPED_IMAGES, len(keys)))
        places = range(span.start, span.stop)
        found = np.array([source.stamp(place) for place in places], np.uint64)
        is_known = (found != 0) & (found == stamps[span]) & hashes[span].any(axis=1)
        stamps[span] = found
        return start + np.flatnonzero(~is_known)

    def read(places: npt.NDArray[np.int64]) -> int:
        for place in places.tolist():
            hashes[place] = _hash_of(source, place, skip=skip)
        return len(places)

    with progress("index", len(keys), "images") as advance:
        for first in range(0, len(keys), BLOCK_IMAGES):
            stop = min(first + BLOCK_IMAGES, len(keys))
            starts = range(first, stop, STAMPED_IMAGES)
            unread = np.concatenate(list(in_order(pool, stamp, starts)))
            advance(stop - first - len(unread), "")
            parts = (unread[i : i + READ_IMAGES] for i in range(0, len(unread), READ_IMAGES))
            for count in pool.map(read, parts):
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


def _hash_of(source: Source, position: int, *, skip: bool) -> tuple[int, int]:
    try:
        return content_hash(source.read(position))
    except (OSError, ValueError) as error:
        if skip:
            return UNREADABLE
        raise unreadable(source.keys[position], error) from error
