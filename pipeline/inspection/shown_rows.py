"""Which images of a cache are shown.

N rows of the cache, R images that are shown.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cache.errors import RepaCacheError
from cache.order import evenly
from cache.rows import RowTable
from pipeline.inspection.contents import Contents
from stages.progress import say

RowNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Of the keys that a part of a key fits, or that lie near to one.
NAMED_KEYS = 6


class UnknownKeyError(RepaCacheError):
    """No image of the cache has this key, or several could be meant."""


def find_rows(keys: Sequence[str], table: RowTable, count: int) -> RowNumbers:
    """The rows of some keys, of unique endings of keys, or of unique parts of keys, [R].

    The name of a class stands for `count` of its images. Raises UnknownKeyError with the keys that
    are near.
    """
    known: list[str] = table.key.tolist()
    rows: list[int] = []
    for key in keys:
        if key in table.classes and key not in known:
            rows += _rows_of_class(key, table, count)
        else:
            rows.append(_find_row(key, known))
    return np.array(list(dict.fromkeys(rows)), np.int64)


def _rows_of_class(name: str, table: RowTable, count: int) -> list[int]:
    """Rows that are evenly spread over those of a class."""
    rows = np.flatnonzero(table.label == table.classes.index(name))
    chosen = evenly(rows, count)
    say(f"{name}: {len(chosen)} of its {len(rows):,} images (--images)")
    return [int(row) for row in chosen]


def _find_row(key: str, known: Sequence[str]) -> int:
    for fits in (key.__eq__, lambda name: name.endswith(key), lambda name: key in name):
        found = [row for row, name in enumerate(known) if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            names = sorted(known[row] for row in found[: 100 * NAMED_KEYS])[:NAMED_KEYS]
            raise UnknownKeyError(
                f"{len(found):,} images could be meant, among them {', '.join(names)}",
                where=f"--rows {key}",
                remedy="Give more of the key.",
            )
    ordered = sorted(known)
    place = bisect_left(ordered, key)
    near = ordered[max(place - NAMED_KEYS // 2, 0) : place + NAMED_KEYS // 2]
    raise UnknownKeyError(
        "no image has such a key",
        where=f"--rows {key}",
        remedy=f"Those next to it in the alphabet: {', '.join(near)}.",
    )


def shown_columns(contents: Contents, rows: RowNumbers | None = None) -> tuple[list[str], Mask]:
    """Columns that have images in common, and which rows, [N], these are.

    The columns that have most images come first; one that shares none with them is left out.
    rows: the images that they have to have, if some are asked for.
    """
    assert contents.rows is not None
    common, names = np.ones(len(contents.rows), np.bool_), []
    for held in sorted(contents.columns, key=lambda held: -int(held.there.sum())):
        both = common & held.there
        if both.any() if rows is None else both[rows].all():
            names.append(held.name)
            common = both
    return names, common


def spread_rows(there: Mask, labels: npt.NDArray[np.int32], count: int) -> RowNumbers:
    """Up to `count` rows, evenly spread over the images in the order of their classes, [R]."""
    rows = np.flatnonzero(there)
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    count = min(count, len(rows))
    # The middle of each of `count` equal parts.
    return ordered[(2 * np.arange(count) + 1) * len(rows) // (2 * count)] if count else ordered


def drawn_rows(there: Mask, count: int, seed: int) -> RowNumbers:
    """Up to `count` rows at random, [R]."""
    rows = np.flatnonzero(there)
    return np.random.default_rng(seed).permutation(rows)[:count]
