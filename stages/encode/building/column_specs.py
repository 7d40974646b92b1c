"""What a column will look like on disk, from the network that fills it."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cache.layout import ArraySpec, Column, Constants
from cache.metadata import (
    constants_recipe,
    create_column,
    has_column,
    read_column,
    resize_column,
    root_attributes,
)
from cache.recipe import Recipe
from stages.encode.building.columns import Maker
from stages.encode.images.crop_batches import CropReader, Crops
from stages.packages import OPTIONAL


def open_column(path: Path, maker: Maker, crops: CropReader) -> Column:
    """The column that a maker fills, made on first use and as long as the row table."""
    if not has_column(path, maker.column):
        create_column(describe(path, maker, crops, measure(maker, crops)), provenance(maker.recipe))
    column = read_column(path, maker.column, len(crops.rows))
    resize_column(column)
    return column


def measure(maker: Maker, crops: CropReader) -> Constants:
    """The constants of a maker's column, from the first rows, which are a random sample."""
    if not maker.storage.constants:
        return {}
    sample = crops.batches(range(min(len(crops.rows), maker.storage.sample_rows)))
    values = [maker.network(batch)[maker.array][torch.from_numpy(batch.valid)] for batch in sample]
    return {n: np.asarray(c.cpu()) for n, c in maker.storage.measure(torch.cat(values)).items()}


def describe(path: Path, maker: Maker, crops: CropReader, constants: Constants) -> Column:
    """The column that a maker fills, with these constants."""
    sample, rows_per_shard = next(crops.batches(range(1))), root_attributes(path)["rows_per_shard"]
    return column_of(path, maker, sample, constants, len(crops.rows), rows_per_shard)


def column_of(
    path: Path,
    maker: Maker,
    sample: Crops,
    constants: Constants,
    rows: int,
    rows_per_shard: int,
) -> Column:
    """The column that a maker fills for so many rows, by what it makes of a sample."""
    arrays = maker.encode(sample, constants)
    own = {"constants": constants_recipe(constants)} if constants else {}
    return Column(
        name=maker.column,
        folder=path / maker.column,
        arrays=tuple(
            ArraySpec(
                name,
                str(array.dtype).removeprefix("torch."),
                tuple(array.shape[1:]),
                is_compressed=maker.storage.is_compressed and name == maker.array,
            )
            for name, array in arrays.items()
        ),
        recipe={**maker.recipe, **own},
        rows=rows,
        rows_per_shard=rows_per_shard,
        constants=constants,
    )


def provenance(recipe: Recipe) -> dict[str, str]:
    """Which software makes a column, and when: of use to readers, without effect on identity."""
    packages = ["repa-cache", "torch", "timm", "diffusers", "pillow"]
    if (library := recipe.get("library")) in OPTIONAL:
        packages.append(str(library))
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
