"""Which rows of a cache the images of a data set are whose keys only tell where they lie.

Rows of tables are called by file and number, or by paths if all have one: when files are written
anew, divided otherwise or joined by more, an image may come to be called otherwise. It stays the
row that it is in the cache, by its content.
"""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.rows import UNREADABLE, RowTable
from stages.encode.images.sources import Source

Image = tuple[int, int, int]


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
