"""Batches of cached tensors: the only way data enters training.

B images of a rank, C latent channels, h and w the latent's sides, T tokens, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.arrays import RowReader, aligned_buffer, hold_small
from cache.layout import Column
from cache.order import order
from cache.reader import Cache
from cache.ring import BatchRing
from cache.storage import STORAGES
from stages.placement import Placement
from stages.train.settings import TrainSettings


@dataclass(frozen=True)
class Batch:
    """moments: float16 [B, 2C, h, w]; labels: int64 [B]; tokens: float32 [B, T, D] each.

    Tokens stored as int8 are known up to a factor each, which no cosine sees.
    """

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


def latent_scaling(latents: Column) -> LatentScaling:
    """The scaling of a column of latents, from its recipe."""
    recipe = latents.recipe
    return LatentScaling(float(recipe["scaling_factor"]), float(recipe["shift_factor"]))  # type: ignore[arg-type]


class CachedBatches:
    """Reads any step's batch of one rank, and ahead of it those that follow.

    path: the cache; latents: the name of its column of latents. Raises IncompleteCacheError if
    a column is missing or not finished.
    """

    def __init__(self, path: Path, latents: str, settings: TrainSettings, place: Placement) -> None:
        cache = Cache(path)
        names = (latents, *(f"features/{encoder}" for encoder in settings.encoders))
        readers = [cache.column(name, verify=settings.reading.verify) for name in names]
        columns = [reader.column for reader in readers]
        self._settings = settings
        self._place = place
        self._labels = torch.from_numpy(cache.rows.label).long()
        self._decoders = [Decoder(column, place.device) for column in columns[1:]]
        self._copied: torch.cuda.Event | None = None
        channels, height, width = columns[0].array("moments").row_shape
        self.classes = len(cache.rows.classes)
        self.latent_shape = (channels // 2, height, width)
        self.token_shapes = [column.array("tokens").row_shape for column in columns[1:]]
        self.scaling = latent_scaling(columns[0])
        self.fingerprints = {column.name: column.fingerprint for column in columns}
        self.rows_fingerprint = cache.rows.fingerprint
        arrays = ("moments", *("tokens" for _ in columns[1:]))
        self._ring = self._make_ring([r.rows(n) for r, n in zip(readers, arrays, strict=True)])

    def _make_ring(self, sources: Sequence[RowReader]) -> BatchRing:
        reading, slots = self._settings.reading, range(self._settings.reading.ahead + 1)
        return BatchRing(
            hold_small(sources, round(reading.memory_gb * 1e9)),
            self.rows,
            [[self._buffer(source) for source in sources] for _ in slots],
            threads=reading.threads,
            stop=self._settings.steps,
            timeout_seconds=reading.timeout_seconds,
        )

    def _buffer(self, source: RowReader) -> npt.NDArray[Any]:
        """Memory for one batch of an array: pinned if it will be copied to a GPU."""
        shape = (self._settings.batch_size // self._place.world, *source.shape[1:])
        if self._place.device.type != "cuda":
            return aligned_buffer(shape, source.dtype)
        dtype = torch.from_numpy(np.empty(0, source.dtype)).dtype
        buffer: npt.NDArray[Any] = torch.empty(shape, dtype=dtype, pin_memory=True).numpy()
        return buffer

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The rows [B] of a step."""
        settings, place = self._settings, self._place
        return order(
            settings.seed,
            step,
            place.rank,
            place.world,
            rows=len(self._labels),
            batch=settings.batch_size,
            block=settings.block_rows,
        )

    def read(self, step: int) -> Batch:
        """The batch of a step, on the rank's device; valid until the next one is read."""
        device = self._place.device
        if self._copied is not None:
            # The ring is about to reuse the buffers of the last batch.
            self._copied.synchronize()
        is_pinned = device.type == "cuda"
        moments, *stored = (tensor.to(device, non_blocking=is_pinned) for tensor in self.take(step))
        labels = self._labels[torch.from_numpy(self.rows(step))].to(device)
        if is_pinned:
            self._copied = torch.cuda.Event()
            self._copied.record()
        tokens = [decode(codes) for decode, codes in zip(self._decoders, stored, strict=True)]
        return Batch(moments, labels, tokens)

    def take(self, step: int) -> list[Tensor]:
        """Moments and tokens of a step as they are stored, in memory."""
        return [torch.from_numpy(buffer) for buffer in self._ring.take(step)]

    def close(self) -> None:
        """Stop reading ahead."""
        self._ring.close()


class Decoder:
    """Turns stored tokens of a column into numbers, on the device."""

    def __init__(self, column: Column, device: torch.device) -> None:
        self._storage = STORAGES[str(column.recipe["storage"])]
        self._constants = {
            name: torch.from_numpy(values).to(device) for name, values in column.constants.items()
        }

    def __call__(self, stored: Tensor) -> Tensor:
        """Tokens, float32 [B, T, D], up to a positive factor each."""
        tokens: Tensor = self._storage.directions(stored, self._constants)
        return tokens
