"""What a column will look like on disk, from the network that fills it."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

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
from stages.encode.columns import Maker
from stages.encode.shards import ShardEncoder


def open_column(path: Path, maker: Maker, encoder: ShardEncoder) -> Column:
    """The column that a maker fills, made on first use and as long as the row table."""
    if not has_column(path, maker.column):
        create_column(describe(path, maker, encoder, measure(maker, encoder)), provenance())
    column = read_column(path, maker.column, len(encoder.rows))
    resize_column(column)
    return column


def measure(maker: Maker, encoder: ShardEncoder) -> Constants:
    """The constants of a maker's column, from the first rows, which are a random sample."""
    sample = range(min(len(encoder.rows), maker.storage.sample_rows))
    return maker.measure(torch.cat([maker.network(batch) for batch in encoder.batches(sample)]))


def describe(path: Path, maker: Maker, encoder: ShardEncoder, constants: Constants) -> Column:
    """The column that a maker fills, with these constants."""
    arrays = maker.encode(next(encoder.batches(range(1))), constants)
    own = {"constants": constants_recipe(constants)} if constants else {}
    return Column(
        name=maker.column,
        folder=path / maker.column,
        arrays=tuple(ArraySpec(n, str(a.dtype), a.shape[1:]) for n, a in arrays.items()),
        recipe={**maker.recipe, **own},
        rows=len(encoder.rows),
        rows_per_shard=root_attributes(path)["rows_per_shard"],
        constants=constants,
    )


def provenance() -> dict[str, str]:
    """Which software makes a column, and when: of use to readers, without effect on identity."""
    packages = ("repa-cache", "torch", "timm", "diffusers", "pillow")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
