"""Where crops come from: the data set, or the cache itself as far as it holds them."""

from concurrent.futures import Executor

import numpy as np
import torch

from cache import ledger
from cache.errors import DamagedCacheError, StaleCacheError
from cache.layout import PIXELS
from cache.metadata import check_recipe, has_column, read_column
from cache.reader import PartialReader
from cache.recipe import Recipe
from cache.rows import RowTable, read_rows
from cache.stores.places import Place
from stages.encode.build_settings import AnyDataset, EncodeSettings
from stages.encode.building.recipes import pixels_recipe
from stages.encode.images.crop_batches import CropReader
from stages.encode.images.sources import Source, SourceError, open_dataset
from stages.encode.images.sources.source import FileSettings, printable
from stages.progress import say


def open_source(settings: EncodeSettings) -> Source | None:
    """The data set, or None if its files are gone but the cache has all of their crops."""
    dataset = settings.dataset
    if isinstance(dataset, FileSettings) and dataset.path is None:
        raise SourceError("dataset.path: where the images are is not known; --config tells it.")
    try:
        return open_dataset(dataset)
    except SourceError as error:
        if not _has_all_crops(settings):
            raise
        say(f"{error} Encoding from the crops in {settings.cache.path}.")
        return None


def found(source: Source, dataset: AnyDataset) -> str:
    """Which images of which classes a data set has, and what else lies in it, a line each."""
    names = source.classes
    ends = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    line = (
        f"{dataset.path or dataset.source}: {_counted(len(source.keys), 'image', 's')} of "
        f"{_counted(len(names), 'class', 'es')} ({printable(ends)})"
    )
    if (lacking := np.flatnonzero(np.bincount(source.labels, minlength=len(names)) == 0)).size:
        line += f", {len(lacking):,} of them without images, as {printable(names[lacking[0]])}"
    return f"{line}\nleft out: {source.left_out}" if source.left_out.total else line


def _counted(number: int, noun: str, plural: str) -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def open_crops(
    settings: EncodeSettings,
    source: Source | None,
    rows: RowTable,
    pool: Executor,
    device: torch.device,
) -> CropReader:
    """The reader of the crops of a cache's rows, for networks on a device."""
    dataset = settings.dataset
    return CropReader(
        source,
        rows,
        dataset.resolution,
        settings.build.images_at_once(device),
        pool,
        dataset.crop,
        skip=dataset.on_error == "skip",
        stored=stored_crops(settings.cache.path, pixels_recipe(settings), rows),
        with_latents=settings.latents.imported,
        pin_memory=device.type == "cuda",
    )


def stored_crops(path: Place, recipe: Recipe, rows: RowTable) -> PartialReader | None:
    """The crops that the cache holds by this recipe, if any."""
    if not has_column(path, PIXELS):
        return None
    try:
        column = read_column(path, PIXELS, len(rows))
        check_recipe(column, recipe)
        return PartialReader(column)
    except (DamagedCacheError, StaleCacheError):
        return None


def _has_all_crops(settings: EncodeSettings) -> bool:
    path = settings.cache.path
    if not has_column(path, PIXELS):
        return False
    rows = read_rows(path)
    stored = stored_crops(path, pixels_recipe(settings), rows)
    return stored is not None and not ledger.missing(stored.column, rows)
