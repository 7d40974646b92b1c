"""Batches of cached tensors: the only way data enters training.

B images of a rank, C latent channels, h and w the latent's sides, T tokens, D features.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache.order import order
from cache.reader import Cache, ColumnReader
from stages.placement import Placement
from stages.train.settings import TrainSettings


@dataclass(frozen=True)
class Batch:
    """moments: float16 [B, 2C, h, w]; labels: int64 [B]; tokens: float16 [B, T, D] each."""

    moments: Tensor
    labels: Tensor
    tokens: list[Tensor]


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


def latent_scaling(latents: ColumnReader) -> LatentScaling:
    """The scaling of a column of latents, from its recipe."""
    recipe = latents.column.recipe
    return LatentScaling(float(recipe["scaling_factor"]), float(recipe["shift_factor"]))  # type: ignore[arg-type]


class CachedBatches:
    """Reads any step's batch of one rank.

    path: the cache; latents: the name of its column of latents. Raises IncompleteCacheError if
    a column is missing or not finished.
    """

    def __init__(self, path: Path, latents: str, settings: TrainSettings, place: Placement) -> None:
        cache = Cache(path)
        self._settings = settings
        self._place = place
        self._labels = torch.from_numpy(cache.rows.label).long()
        self._latents = cache.column(latents)
        self._features = [cache.column(f"features/{encoder}") for encoder in settings.encoders]
        self._rows = len(cache.rows)
        self.classes = len(cache.rows.classes)
        channels, height, width = self._latents.array("moments").row_shape
        self.latent_shape = (channels // 2, height, width)
        self.token_shapes = [reader.array("tokens").row_shape for reader in self._features]
        self.scaling = latent_scaling(self._latents)
        self.fingerprints = {
            reader.column.name: reader.column.fingerprint
            for reader in (self._latents, *self._features)
        }

    def read(self, step: int) -> Batch:
        """The batch of a step, on the rank's device."""
        settings, place = self._settings, self._place
        rows = order(
            settings.seed, step, place.rank, place.world, rows=self._rows, batch=settings.batch_size
        )
        return Batch(
            torch.from_numpy(self._latents.read("moments", rows)).to(place.device),
            self._labels[torch.from_numpy(rows)].to(place.device),
            [torch.from_numpy(f.read("tokens", rows)).to(place.device) for f in self._features],
        )
