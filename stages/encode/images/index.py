"""Which images a data set holds, and which rows of a cache they are.

Rows of tables are called by file and number, or by paths if all have one: when files are written
anew, divided otherwise or joined by more, an image may come to be called otherwise. It stays the
row that it is in the cache, by its content.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.rows import UNREADABLE, Keys, RowTable, content_hash, find_keys
from stages.encode.images.crop_batches import unreadable
from stages.encode.images.sources import Source
from stages.encode.images.sources.archives import in_order
from stages.encode.images.sources.source import key_array
from stages.progress import progress

Image = tuple[int, int, int]
# Images stamped, and images read, by one task.
STAMPED_IMAGES, READ_IMAGES = 1024, 64
# Images whose stamps are known before the first of them is read.
BLOCK_IMAGES = 16 * STAMPED_IMAGES


def listed_as(cached: RowTable, source: Source) -> RowTable:
    """The rows of a cache under the keys that the data set has at their places.

    Only those are renamed whose file is the same, so that it need not be read to know its hash.
    """
    keys, places, count = cached.key.copy(), cached.source_index.tolist(), len(source.keys)
    if keys.tolist() == [source.keys[place] if place < count else None for place in places]:
        return cached
    for row in range(len(cached)):
        if is_in_place(cached, row, source):
            keys[row] = source.keys[places[row]]
    return replace(cached, key=keys)


def is_in_place(cached: RowTable, row: int, source: Source) -> bool:
    """Whether a row lies where it did, in a file that is the same, whatever it is called."""
    place, stamp = int(cached.source_index[row]), int(cached.stamp[row])
    is_there = source.are_keys_places and 0 <= place < len(source.keys)
    return is_there and stamp == source.stamp(place) != 0


def recognised(current: RowTable, cached: RowTable) -> RowTable:
    """The rows of a data set under the keys that a cache knows their images by.

    A row with the content and label that the cache has under another key, where the data set has
    none or another image, is that one. Where the data set only numbers its classes, they keep the
    names that the cache has.
    """
    place = {key: row for row, key in enumerate(current.key.tolist())}
    rows = np.array([place.get(key, -1) for key in cached.key.tolist()])
    is_same = (rows >= 0) & (current.content_hash[rows] == cached.content_hash).all(axis=1)
    is_same &= current.label[rows] == cached.label
    is_new = np.ones(len(current), np.bool_)
    is_new[rows[is_same]] = False
    lost: dict[Image, deque[str]] = defaultdict(deque)
    for row in np.flatnonzero(~is_same).tolist():
        if cached.hash_of(row) != UNREADABLE:
            lost[_image(cached, row)].append(str(cached.key[row]))
    found: dict[int, str] = {}
    for row in np.flatnonzero(is_new).tolist():
        if keys := lost.get(_image(current, row)):
            found[row] = keys.popleft()
    classes = _classes(current.classes, cached.classes)
    return replace(current, key=_renamed(current.key, found), classes=classes)


def _renamed(keys: npt.NDArray[Any], found: Mapping[int, str]) -> npt.NDArray[Any]:
    """Keys with those that were found for some rows; who had them before takes one that is free."""
    renamed, taken = keys.copy(), set(found.values())
    free = (key for key in map(str, keys[list(found)]) if key not in taken)
    for row, key in enumerate(keys.tolist() if found else ()):
        renamed[row] = found.get(row) or (next(free) if key in taken else key)
    return renamed


def _image(rows: RowTable, row: int) -> Image:
    """What tells an image: its content hash and label."""
    return (*rows.hash_of(row), int(rows.label[row]))


def _classes(names: tuple[str, ...], cached: tuple[str, ...]) -> tuple[str, ...]:
    numbers = tuple(map(str, range(len(names))))
    return cached + numbers[len(cached) :] if names == numbers else names


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
