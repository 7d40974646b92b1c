"""Single images of a cache: what is stored of them, and which others resemble them.

R images that are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from cache.errors import RepaCacheError
from cache.layout import FEATURES, PIXELS
from cache.reader import ColumnReader, PartialReader
from cache.rows import RowTable
from pipeline.inspection.contents import CachedColumn, Contents
from pipeline.inspection.listings import Listing
from pipeline.inspection.picture_data import encoder_of
from pipeline.inspection.shown_rows import RowNumbers
from stages.analyze.retrieval import Neighbour, find_nearest
from stages.progress import say

# Images among which neighbours are looked for where all tokens of each have to be read.
AMONG_TOKENS = 50_000

# Instead of three lengths.
NOTHING = ("", "", "")

# Neighbours of each image, by encoder.
Neighbours = Mapping[str, Sequence[Sequence[Neighbour]]]


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
    return [
        Listing(
            "rows",
            ("key", "row", "shard", "class", "label", "place in the data set", "content hash"),
            tuple(images),
        ),
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
    """The nearest images by every encoder that has them all.

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
