"""What a run sees of a cache: the columns it reads, and the images that have them all.

B images, C latent channels, h and w the latent's sides, N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cache.errors import IncompleteCacheError
from cache.layout import Column
from cache.reader import Cache, ColumnReader
from stages.train.arrays import encoder_of, shape_of
from stages.train.train_settings import CachedTensors


@dataclass(frozen=True)
class LatentScaling:
    """How an autoencoder's latents become the numbers a diffusion model sees."""

    scale: float
    shift: float

    def sample(self, moments: Tensor, normal: Tensor) -> Tensor:
        """Clean latents [B, C, h, w], float32, drawn from the posterior.

        moments: mean and standard deviation, [B, 2C, h, w]; normal: [B, C, h, w].
        """
        mean, std = moments.float().chunk(2, dim=1)
        return (mean + std * normal - self.shift) * self.scale


def latent_scaling(latents: Column) -> LatentScaling:
    """The scaling of a column of latents, from its recipe."""
    recipe = latents.recipe
    return LatentScaling(float(recipe["scaling_factor"]), float(recipe["shift_factor"]))  # type: ignore[arg-type]


class CachedData:
    """The columns of a run, one reader for each view of an image.

    encoders: whose tokens are read at some step; features: their readers, by name; labels: int32
    [N]; keys: of the images; valid: the rows that hold tensors in every column; latent_shape:
    (C, h, w). Raises IncompleteCacheError if a column is missing or not finished.
    """

    def __init__(
        self, tensors: CachedTensors, encoders: Sequence[str], *, verify: bool = True
    ) -> None:
        cache = Cache(tensors.path)
        self.latents, *features = [
            [cache.column(name, verify=verify) for name in views]
            for views in tensors.columns(encoders)
        ]
        self.features = dict(zip(encoders, features, strict=True))
        readers = [reader for views in (self.latents, *features) for reader in views]
        self.flip = tensors.flip
        self.labels, self.keys = cache.rows.label, cache.rows.key
        self.classes = len(cache.rows.classes)
        self.valid = _valid_rows(readers)
        latents = self.latents[0].column
        channels, height, width = latents.array("moments").row_shape
        self.latent_shape = (channels // 2, height, width)
        self.scaling = latent_scaling(latents)
        self.fingerprints = {reader.column.name: reader.column.fingerprint for reader in readers}
        self.rows_identity = {"fingerprint": cache.rows.fingerprint, "valid": len(self.valid)}

    def shape(self, name: str) -> tuple[int, ...]:
        """That of an image's part of an array, one of `stages.train.arrays`."""
        return shape_of(name, self.features[encoder_of(name)][0].column)


def _valid_rows(readers: Sequence[ColumnReader]) -> npt.NDArray[np.int64]:
    """The rows that hold tensors in every column. Raises IncompleteCacheError if none does."""
    rows = np.flatnonzero(np.logical_and.reduce([reader.valid for reader in readers]))
    if not len(rows):
        raise IncompleteCacheError("No image of the cache could be decoded when it was built.")
    return rows
