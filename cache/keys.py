"""Finding millions of keys among others, as arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

# Keys that are copied, or are Python's strings, at the same time.
PIECE = 65536


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
