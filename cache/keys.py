"""Finding millions of keys among others, as arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[Any]
Places = npt.NDArray[np.int64]

# Keys that are Python's strings at the same time.
PIECE = 65536


def find_keys(keys: Keys, among: Keys, likely: Places) -> Places:
    """Where each of some keys, [K], is among others, [N]: positions [K], -1 for none.

    Both are unique. likely: positions [K] to look at first, which is much faster than searching.
    """
    found = np.full(len(keys), -1, np.int64)
    if not len(among):
        return found

    def settle(own: Places, place: Places) -> npt.NDArray[np.bool_]:
        is_right: npt.NDArray[np.bool_] = among[place] == keys[own]
        found[own[is_right]] = place[is_right]
        return is_right

    settle(np.arange(len(keys)), np.clip(likely, 0, len(among) - 1))
    left = np.flatnonzero(found < 0)
    if not len(left):
        return found
    own, hashes = _hashes(keys[left]), _hashes(among)
    order = np.argsort(hashes)
    hashes = hashes[order]
    place = np.searchsorted(hashes, own)
    while True:
        # Other keys may have the same hash.
        is_possible = hashes[np.minimum(place, len(among) - 1)] == own
        is_possible &= place < len(among)
        left, own, place = left[is_possible], own[is_possible], place[is_possible]
        if not len(left):
            return found
        is_open = ~settle(left, order[place])
        left, own, place = left[is_open], own[is_open], place[is_open] + 1


def _hashes(keys: Keys) -> npt.NDArray[np.int64]:
    pieces = (keys[start : start + PIECE].tolist() for start in range(0, len(keys), PIECE))
    return np.fromiter((hash(key) for piece in pieces for key in piece), np.int64, len(keys))
