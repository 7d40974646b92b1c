"""Batches of cached tensors: the only way data enters training.

B images of a rank, C latent channels, h and w the latent's sides, T tokens, D features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.arrays import JoinedRows, RowReader, aligned_buffer, hold_small
from cache.layout import Column
from cache.order import order
from cache.ring import BatchRing
from cache.storage import STORAGES, Storage
from stages.placement import Placement
from stages.train.alignment import ALIGNMENTS
from stages.train.cached_data import CachedData
from stages.train.randomness import mirrored
from stages.train.train_settings import TrainSettings
from stages.train.transfer import Transfer


@dataclass(frozen=True)
class Batch:
    """moments: float16 [B, 2C, h, w]; labels: int64 [B]; tokens: float32 [B, T, D] each.

    Tokens stored as int8 are known up to a factor each, unless the alignment asks for more.
    """

    moments: Tensor
    labels: Tensor
    tokens: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, as `of` takes them."""
        return [self.moments, self.labels, *self.tokens]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Batch":
        """A batch from all of its tensors."""
        moments, labels, *tokens = tensors
        return cls(moments, labels, tokens)

    def split(self, parts: int) -> list["Batch"]:
        """Equal parts of the images."""
        chunks = zip(*(tensor.chunk(parts) for tensor in self.tensors), strict=True)
        return [Batch.of(chunk) for chunk in chunks]


class CachedBatches:
    """Reads any step's batch of one rank, and ahead of it those that follow.

    is_aligned: whether the encoders' tokens are read; stop: the first step that is not read
    ahead, by default the last of the run.
    """

    def __init__(
        self,
        data: CachedData,
        settings: TrainSettings,
        place: Placement,
        *,
        is_aligned: bool = True,
        stop: int | None = None,
    ) -> None:
        self._data, self._settings, self._place = data, settings, place
        self._labels = torch.from_numpy(data.labels).long().to(place.device)
        exact = ALIGNMENTS[settings.alignment].needs_lengths
        features = data.features if is_aligned else []
        self._decoders = [
            Decoder([view.column for view in views], place.device, exact) for views in features
        ]
        arrays = [(data.latents, "moments")]
        for views, decoder in zip(features, self._decoders, strict=True):
            arrays += [(views, name) for name in decoder.arrays]
        sources = [JoinedRows([view.rows(name) for view in views]) for views, name in arrays]
        stop = settings.steps if stop is None else stop
        self._ring = self._make_ring(sources, stop)
        self._transfer = Transfer(self._take_with_rows, place.device, stop)

    def _make_ring(self, sources: Sequence[RowReader], stop: int) -> BatchRing:
        reading, slots = self._settings.reading, range(self._settings.reading.ahead + 1)
        return BatchRing(
            hold_small(sources, round(reading.memory_gb * 1e9)),
            self.rows,
            [[self._buffer(source) for source in sources] for _ in slots],
            threads=reading.threads,
            stop=stop,
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
        """The rows [B] of a step, among those of valid images.

        Row r of a mirrored image has the number N + r, as if both views were one array.
        """
        return self._rows(step, self._place)

    def images(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of the images that all ranks together see in a step, whichever view."""
        return self._rows(step, replace(self._place, rank=0, world=1)) % len(self._labels)

    def _rows(self, step: int, place: Placement) -> npt.NDArray[np.int64]:
        settings = self._settings
        places = order(
            settings.seed,
            step,
            place.rank,
            place.world,
            rows=len(self._data.valid),
            batch=settings.batch_size,
            block=settings.block_rows,
        )
        rows = self._data.valid[places]
        if self._data.flip:
            rows = rows + len(self._labels) * mirrored(settings, step, place)
        return rows

    def read(self, step: int) -> Batch:
        """The batch of a step, on the rank's device; valid until the next one is read."""
        moments, *stored, rows = self._transfer.get(step)
        views = rows // len(self._labels)
        tokens = []
        for decode in self._decoders:
            tokens.append(decode(stored[: len(decode.arrays)], views))
            stored = stored[len(decode.arrays) :]
        return Batch(moments, self._labels[rows % len(self._labels)], tokens)

    @property
    def wait_seconds(self) -> float:
        """Time spent waiting for the cache."""
        return self._transfer.wait_seconds

    def take(self, step: int) -> list[Tensor]:
        """Moments and tokens of a step as they are stored, in memory."""
        return [torch.from_numpy(buffer) for buffer in self._ring.take(step)]

    def _take_with_rows(self, step: int) -> list[Tensor]:
        rows = torch.from_numpy(self.rows(step))
        is_copied = self._place.device.type == "cuda"
        return [*self.take(step), rows.pin_memory() if is_copied else rows]

    def close(self) -> None:
        """Stop reading ahead."""
        self._ring.close()


def arrays_read(storage: Storage, *, exact: bool) -> tuple[str, ...]:
    """The arrays of an encoder's column that training reads.

    exact: whether the length of a token matters.
    """
    return ("tokens", *(storage.beside if exact else ()))


class Decoder:
    """Turns stored tokens into numbers, on the device.

    views: the columns of each view; exact: whether the length of a token matters; arrays: the
    names of those it needs.
    """

    def __init__(self, views: Sequence[Column], device: torch.device, exact: bool) -> None:
        self._storage = STORAGES[str(views[0].recipe["storage"])]
        self._exact = exact
        self.arrays = arrays_read(self._storage, exact=exact)
        self._constants = {
            name: torch.from_numpy(np.stack([view.constants[name] for view in views])).to(device)
            for name in views[0].constants
        }

    def __call__(self, stored: Sequence[Tensor], views: Tensor) -> Tensor:
        """Tokens, float32 [B, T, D]; if not exact, up to a positive factor each.

        stored: the arrays' rows; views: int64 [B], the view that each image is.
        """
        constants = {name: values[views][:, None] for name, values in self._constants.items()}
        tokens: Tensor
        if self._exact:
            arrays = dict(zip(self.arrays, stored, strict=True))
            tokens = self._storage.decode("tokens", arrays, constants)
        else:
            tokens = self._storage.directions(stored[0], constants)
        return tokens
