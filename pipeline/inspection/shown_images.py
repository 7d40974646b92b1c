"""Which images of a cache are shown, what is stored of each, and which others resemble them.

N rows of the cache, R images that are shown.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from cache.errors import RepaCacheError
from cache.layout import FEATURES, PIXELS
from cache.order import evenly
from cache.reader import ColumnReader, PartialReader
from cache.rows import RowTable
from pipeline.inspection.contents import CachedColumn, Contents, encoder_of
from pipeline.inspection.listings import Listing
from stages.analyze.caption_vectors import CaptionVectors
from stages.analyze.neighbours import Neighbour, find_nearest
from stages.progress import say

RowNumbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Of the keys that a part of a key fits, or that lie near to one.
NAMED_KEYS = 6
# Images among which neighbours are looked for where all tokens of each have to be read.
AMONG_TOKENS = 50_000

# Instead of three lengths.
NOTHING = ("", "", "")

# Neighbours of each image, by encoder.
Neighbours = Mapping[str, Sequence[Sequence[Neighbour]]]


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


def image_listings(contents: Contents, table: RowTable, rows: RowNumbers) -> list[Listing]:
    """What the cache has of some images, as tables."""
    per_shard = int(contents.root["rows_per_shard"])
    images = [
        (
            str(table.key[row]),
            f"{row:,}",
            f"{row // per_shard:,}",
            class_of(table, row),
            str(table.label[row]),
            f"{table.source_index[row]:,}",
            "{:016x}{:016x}".format(*table.hash_of(row)),
        )
        for row in rows.tolist()
    ]
    lines = [
        (str(table.key[row]), held.name, *_lengths(held, row))
        for row in rows.tolist()
        for held in contents.columns
    ]
    told = contents.told
    captions = [
        (str(table.key[row]), text)
        for row in (rows.tolist() if told is not None else ())
        for text in (told.of(row) if told is not None else ())
    ]
    return [
        Listing(
            "rows",
            ("key", "row", "shard", "class", "label", "place in the data set", "content hash"),
            tuple(images),
        ),
        Listing("captions", ("key", "caption"), tuple(captions)),
        Listing(
            "what is stored of them (norms of tokens, and of latents at each place)",
            ("key", "column", "state", "mean", "lowest", "highest"),
            tuple(lines),
        ),
    ]


def class_of(table: RowTable, row: int) -> str:
    """The name of an image's class."""
    return table.classes[int(table.label[row])]


def _lengths(held: CachedColumn, row: int) -> tuple[str, ...]:
    """Whether a row is there, and the mean, lowest and highest norm of its vectors."""
    column = held.column
    if not held.there[row]:
        return ("not finished, or invalid", *NOTHING)
    name = column.arrays[0].name
    try:
        (values,) = PartialReader(column).values(name, np.array([row]))
    except (RepaCacheError, OSError) as error:
        return (str(error), *NOTHING)
    if column.name.startswith(PIXELS):
        return ("valid", *NOTHING)
    vectors = torch.from_numpy(values)
    # Of latents the mean, whose features come first.
    norms = vectors.norm(dim=1) if name == "tokens" else vectors.chunk(2)[0].norm(dim=0)
    return ("valid", *(f"{value:.4g}" for value in (norms.mean(), norms.min(), norms.max())))


def find_neighbours(
    contents: Contents, rows: RowNumbers, count: int, among: int | None
) -> Neighbours:
    """The nearest images by every encoder that has them all, and by captions.

    among: how many images to look at, spread over the cache; by default as many as is quick.
    """
    found = {}
    for held in contents.columns if count else ():
        if held.name.startswith(FEATURES) and held.there[rows].all():
            try:
                reader = ColumnReader(held.column)
                most = among or (held.column.rows if reader.has_class_token else AMONG_TOKENS)
                there = np.flatnonzero(held.there)
                places = np.linspace(0, len(there) - 1, min(most, len(there)))
                sample = there[places.astype(np.int64)]
                found[encoder_of(held.name)] = find_nearest(reader, rows, sample, count)
            except (RepaCacheError, OSError) as error:
                say(f"{held.name}: no neighbours: {error}")
    for held in contents.texts if count else ():
        told = contents.told
        if told is not None and held.there.all() and (told.count[rows] > 0).all():
            vectors = CaptionVectors(ColumnReader(held.column), told)
            sample = evenly(np.flatnonzero(told.count > 0), among or AMONG_TOKENS)
            found[held.column.title] = find_nearest(vectors, rows, sample, count)
    return found


def neighbour_listings(
    table: RowTable, rows: RowNumbers, neighbours: Neighbours
) -> Iterator[Listing]:
    """The neighbours of each image, as tables."""
    for place, row in enumerate(rows.tolist()):
        lines = [
            (encoder, str(table.key[near.row]), class_of(table, near.row), f"{near.similarity:.4f}")
            for encoder, lists in neighbours.items()
            for near in lists[place]
        ]
        about = f"nearest to {table.key[row]} ({class_of(table, row)})"
        yield Listing(about, ("encoder", "key", "class", "similarity"), tuple(lines))
