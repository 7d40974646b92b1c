"""From what is asked for to tables and a page of pictures.

R images that are shown.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from torch import Tensor

from cache.errors import IncompleteCacheError
from cache.stores.places import local_folder
from pipeline.inspection import shown_images
from pipeline.inspection.contents import Contents
from pipeline.inspection.inspection_page import Selection, write_pictures
from pipeline.inspection.listings import cache_listings, headline, show_listings
from pipeline.inspection.picture_data import PictureData, gather_picture_data, read_crops
from stages.encode.build_settings import EncodeSettings


@dataclass(frozen=True)
class InspectOptions:
    """Which images to look at.

    keys: of single images, parts of keys, or classes; neighbours: how many to find of each image;
    among: how many images to look at for that, or None for as many as is quick; images: of each
    class that is named, or in all if nothing is; seed: draws these at random, None spreads them.
    """

    keys: tuple[str, ...] = ()
    neighbours: int = 0
    among: int | None = None
    images: int = 8
    seed: int | None = None


def show_contents(contents: Contents) -> None:
    """Print what a cache holds."""
    for line in headline(contents):
        typer.echo(line)
    show_listings(cache_listings(contents))


def select(contents: Contents, options: InspectOptions) -> Selection:
    """The images that are asked for by key, or as many as are asked for.

    Raises DamagedCacheError if the row table cannot be read, UnknownKeyError for a key that no
    image has, IncompleteCacheError if there is nothing to select from.
    """
    table, asked = contents.readable_rows, None
    if options.keys:
        asked = shown_images.find_rows(options.keys, table, options.images)
    columns, there = shown_images.shown_columns(contents, asked)
    if asked is not None:
        rows = asked
    elif options.seed is None:
        rows = shown_images.spread_rows(there, table.label, options.images)
    else:
        rows = shown_images.drawn_rows(there, options.images, options.seed)
    if not columns:
        raise IncompleteCacheError(
            "no image is finished in any column",
            where=contents.path,
            remedy="Run `repa-cache build`.",
        )
    neighbours = shown_images.find_neighbours(contents, rows, options.neighbours, options.among)
    listings = shown_images.image_listings(contents, table, rows) if options.keys else []
    return Selection(table, rows, columns, neighbours, listings)


def show_images(chosen: Selection) -> None:
    """Print what a cache has of some images, and which others resemble them."""
    nearest = shown_images.neighbour_listings(chosen.table, chosen.rows, chosen.neighbours)
    show_listings([*chosen.listings, *nearest])


def write_gallery(
    settings: EncodeSettings, contents: Contents, chosen: Selection, folder: Path | None
) -> Path:
    """Write the page of some images; returns it.

    folder: by default beside the cache, or here for one in a store.
    """
    settings = _as_cached(settings, contents)
    data = gather_picture_data(settings, contents, chosen.rows, chosen.columns)
    data.notes += [
        f"without {held.name}: it does not have these images"
        for held in contents.columns
        if held.name not in chosen.columns
    ]
    data.nearby = _nearby(settings, chosen, data)
    folder = folder or local_folder(contents.path) / f"{contents.path.stem}-inspect"
    return write_pictures(folder, contents, chosen, data)


def _as_cached(settings: EncodeSettings, contents: Contents) -> EncodeSettings:
    """The settings with the resolution of the cache, which the configuration may have left."""
    resolution = contents.columns[0].column.recipe["resolution"]
    dataset = settings.dataset.model_copy(update={"resolution": resolution})
    return settings.model_copy(update={"dataset": dataset})


def _nearby(settings: EncodeSettings, chosen: Selection, data: PictureData) -> dict[int, Tensor]:
    """The crops of all neighbours, as far as they can be had, by row."""
    lists = (some for lists in chosen.neighbours.values() for some in lists)
    rows = np.array(sorted({near.row for some in lists for near in some}), np.int64)
    if len(rows) and data.crops is not None:
        with data.without("the crops of neighbours"):
            crops = read_crops(settings, chosen.table, rows)
            return dict(zip(rows.tolist(), crops, strict=True))
    return {}
