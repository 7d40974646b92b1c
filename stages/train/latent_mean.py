"""The mean of a data set's latents, computed from the cache once and kept with a run.

N rows, C latent channels, h and w the latent's sides.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cache.files import write_atomically
from cache.reader import ColumnReader
from stages.placement import Placement, agreed
from stages.progress import progress
from stages.train.cached_data import CachedData
from stages.weights.run_folder import latent_mean_path

ROWS_AT_ONCE = 1024


def keep_mean(run: Path, cached: CachedData, place: Placement) -> None:
    """Have a run's folder hold the mean of the latents that it is trained on.

    All processes have to ask together: each reads a part, if it is not there yet.
    """
    recipe = recipe_of(cached)
    path = latent_mean_path(run)
    if agreed(path.is_file() and read_recipe(path) == recipe, place):
        return
    mean = mean_of(cached, place)
    if place.is_main:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({"mean": mean}, {"recipe": json.dumps(recipe)}))


def recipe_of(cached: CachedData) -> dict[str, Any]:
    """What decides the mean: the columns of latents, the rows, their views and their scaling."""
    columns = {reader.column.name: reader.column.fingerprint for reader in cached.latents}
    recipe = {"columns": columns, "rows": dict(cached.rows_identity), **cached.scaling.told}
    return {**recipe, "mirrored": True} if cached.mirrors_pixels else recipe


def mean_of(cached: CachedData, place: Placement) -> Tensor:
    """The mean of all latents as the model sees them, float64 [C, h, w].

    Of every view of an image, from the means of the posteriors, which is exact.
    """
    rows = cached.valid[place.rank :: place.world]
    total = np.zeros(cached.latent_shape, np.float64)
    with progress(
        "mean of latents", len(rows) * len(cached.latents), "rows", quiet=not place.is_main
    ) as advance:
        for reader in cached.latents:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                total += _sum(reader, some, cached)
                advance(len(some), "")
    summed = torch.from_numpy(total)
    if place.world > 1:
        there = summed.to(place.device)
        torch.distributed.all_reduce(there)
        summed = there.cpu()
    mean = summed / (len(cached.valid) * len(cached.latents))
    if cached.mirrors_pixels:
        mean = (mean + mean.flip(-1)) / 2
    return (mean - cached.scaling.shift) * cached.scaling.scale


def _sum(reader: ColumnReader, rows: Any, cached: CachedData) -> Any:
    """The sum of some rows' latents, or of the means of their posteriors, float64 [C, h, w]."""
    values = reader.values(cached.latent_array, rows)
    return values[:, : cached.latent_shape[0]].sum(axis=0, dtype=np.float64)


def read_mean(path: Path) -> Tensor:
    """A mean that is kept, float64 [C, h, w]."""
    with safe_open(path, "pt") as file:
        mean: Tensor = file.get_tensor("mean")
    return mean


def read_recipe(path: Path) -> Mapping[str, Any]:
    """What a mean that is kept is of."""
    with safe_open(path, "np") as file:
        recipe: dict[str, Any] = json.loads(file.metadata()["recipe"])
    return recipe
