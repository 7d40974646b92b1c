"""Which rows of a cache the images of a data set are whose keys only tell where they lie.

Rows of tables are called by file and number, or by paths if all have one: when files are written
anew, divided otherwise or joined by more, an image may come to be called otherwise. It stays the
row that it is in the cache, by its content.
"""

from collections import defaultdict, deque
from dataclasses import replace

from cache.rows import UNREADABLE, RowTable
from stages.encode.sources import Source

Image = tuple[int, int, int]


def listed_as(cached: RowTable, source: Source) -> RowTable:
    """The rows of a cache under the keys that the data set has at their places.

    Only those are renamed whose file is the same, so that it need not be read to know its hash.
    """
    keys, places = cached.key.copy(), len(source.keys)
    if set(keys.tolist()).issubset(source.keys):
        return cached
    rows = zip(cached.source_index.tolist(), cached.stamp.tolist(), strict=True)
    for row, (place, stamp) in enumerate(rows):
        if 0 <= place < places and stamp == source.stamp(place) != 0:
            keys[row] = source.keys[place]
    return replace(cached, key=keys)


def recognised(current: RowTable, cached: RowTable) -> RowTable:
    """The rows of a data set under the keys that a cache knows their images by.

    An image with a new key, and the content and label of one whose key is gone, is that one. Where
    the data set only numbers its classes, they keep the names that the cache has.
    """
    lost: dict[Image, deque[str]] = defaultdict(deque)
    for row in _unknown(cached, current):
        lost[_image(cached, row)].append(str(cached.key[row]))
    keys = current.key.copy()
    for row in _unknown(current, cached) if lost else ():
        if found := lost.get(_image(current, row)):
            keys[row] = found.popleft()
    return replace(current, key=keys, classes=_classes(current.classes, cached.classes))


def _unknown(rows: RowTable, others: RowTable) -> list[int]:
    """Rows that can be read and whose keys others do not have."""
    keys = set(others.key.tolist())
    unknown = [row for row, key in enumerate(rows.key.tolist()) if key not in keys]
    return [row for row in unknown if rows.hash_of(row) != UNREADABLE]


def _image(rows: RowTable, row: int) -> Image:
    """What tells an image: its content hash and label."""
    return (*rows.hash_of(row), int(rows.label[row]))


def _classes(names: tuple[str, ...], cached: tuple[str, ...]) -> tuple[str, ...]:
    numbers = tuple(map(str, range(len(names))))
    return cached + numbers[len(cached) :] if names == numbers else names
