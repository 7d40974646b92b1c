"""Runs that diffuse a class token: of an encoder that has one, or of the tiny one, without."""

import shutil
from pathlib import Path

import numpy as np

from cache.layout import VALID, ArraySpec, Column
from cache.metadata import constants_recipe, create_column, read_column
from cache.reader import Cache
from cache.storage import FLOAT_STORAGES
from cache.writer import ShardWriter

TINY, OTHER, FEATURES = "efficientnet-lite0", "dinov2-vit-b", 24


def entries(encoder: str = TINY) -> str:
    """The setting of a run as REG has it."""
    return (
        f"train.align=[{{kind = 'class-token', encoder = '{encoder}'}}, {{kind = 'repa', encoder = "
        f"'{encoder}', depth = 2, projector_width = 32, class_token = true}}]"
    )


def with_class_tokens(
    built: Path,
    folder: Path,
    storage: str = "float16",
    *,
    class_token: bool = True,
    tokens: int = 16,
) -> tuple[str, ...]:
    """A copy of the tiny cache with one more column, of random numbers, and a run's settings.

    tokens: of an image; class_token: whether the column has class tokens beside them.
    """
    path = folder / f"{storage}.zarr"
    shutil.copytree(built / "tiny.zarr", path)
    rows, how = Cache(path).rows, FLOAT_STORAGES[storage]
    generator = np.random.default_rng(3)
    values = generator.normal(0.5, 1, (len(rows), tokens, FEATURES)).astype(np.float32)
    constants = how.measure(values)
    arrays = {**how.encode("tokens", values, constants), VALID.name: np.ones(len(rows), np.uint8)}
    if class_token:
        vectors = generator.normal(size=(len(rows), FEATURES))
        arrays["class_token"] = vectors.astype(np.float16)
    recipe = {"storage": storage}
    if constants:
        recipe["constants"] = constants_recipe(constants)
    column = Column(
        f"features/{OTHER}",
        path / f"features/{OTHER}",
        tuple(ArraySpec(name, str(a.dtype), a.shape[1:]) for name, a in arrays.items()),
        recipe,
        len(rows),
        8,
        constants=constants,
    )
    create_column(column, {"created": "today"})
    column = read_column(path, column.name, len(rows))
    for shard in range(column.shards):
        span = column.shard_rows(shard)
        with ShardWriter(column, shard, rows.digest(span)) as writer:
            writer.write({name: array[span.start : span.stop] for name, array in arrays.items()})
    return (f"cache.path={path}", f"encoders.{OTHER}.input_size=56", entries(OTHER))
