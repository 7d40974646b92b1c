"""Batches of cached tensors, the only way data enters training, and their way to the device.

B images of a rank, C latent channels, h and w the latent's sides.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.arrays import JoinedRows, RowReader, aligned_buffer, hold_small
from cache.order import order
from cache.ring import BatchRing, Recycled
from cache.shared_memory import SharedMemory
from cache.stores.kept_rows import StoreReading
from cache.stores.local_shards import LocalShards
from cache.stores.places import StorePath
from stages.placement import Placement
from stages.processes import local_world_size
from stages.progress import say
from stages.train.cached_data import CachedData, Decoder, encoder_of
from stages.train.randomness import Stream, drawn_numbers, mirrored
from stages.train.train_settings import ReadingSettings

# Tensors of the same images by name: of a batch `moments`, float16 [B, 2C, h, w], `labels`, int64
# [B], and those of `stages.train.cached_data` and `stages.train.cached_captions`.
Named: TypeAlias = Mapping[str, Tensor]
# The last step of who does not stop.
ENDLESS = 1 << 40
# Rows that are read ahead for each request to a store that may be at work: while some are waited
# for, others come.
SPARE_ROWS = 2
MOST_AHEAD_BYTES = 1 << 30
# That a local folder is filled ahead with.
FORESEEN_SHARDS = 4


class Copied(NamedTuple):
    """A step's tensors on a GPU, and the event that tells when they are there."""

    step: int
    tensors: list[Tensor]
    done: torch.cuda.Event


class Transfer:
    """Delivers the batch of any step on a device.

    take: gives it in memory, valid until the next call, pinned if the device is a GPU; stop: the
    first step that is not fetched ahead. wait_seconds: spent waiting for `take` since the start.
    """

    def __init__(
        self, take: Callable[[int], list[Tensor]], device: torch.device, stop: int
    ) -> None:
        self.wait_seconds = 0.0
        self._take = take
        self._device = device
        self._stop = stop
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: Copied | None = None

    def get(self, step: int) -> list[Tensor]:
        """The batch of a step; on a CPU valid until the next one."""
        if self._stream is None:
            return [tensor.to(self._device) for tensor in self._waited(step)]
        if self._copied is None or self._copied.step != step:
            self._copied = self._copy(step, self._stream)
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(self._copied.done)
        for tensor in self._copied.tensors:
            tensor.record_stream(compute)
        return self._copied.tensors

    def prefetch(self) -> None:
        """Start copying the batch behind the one that was asked for last, if there is one.

        To be called when the work on that one is launched, which hides what this waits for.
        """
        if self._stream is not None and self._copied is not None:
            step = self._copied.step + 1
            if step < self._stop:
                self._copied = self._copy(step, self._stream)

    def _copy(self, step: int, stream: torch.cuda.Stream) -> Copied:
        if self._copied is not None:
            # Its buffers are filled again once the next one is taken.
            self._copied.done.synchronize()
        batch, done = self._waited(step), torch.cuda.Event()
        with torch.cuda.stream(stream):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in batch]
            done.record(stream)
        return Copied(step, tensors, done)

    def _waited(self, step: int) -> list[Tensor]:
        start = time.perf_counter()
        batch = self._take(step)
        self.wait_seconds += time.perf_counter() - start
        return batch


def split(tensors: Named, parts: int) -> list[Named]:
    """The tensors of equal parts of the images."""
    chunks = {name: tensor.chunk(parts) for name, tensor in tensors.items()}
    return [{name: chunk[part] for name, chunk in chunks.items()} for part in range(parts)]


class Order(NamedTuple):
    """Which images come when.

    batch_size: over all ranks; block_rows: rows that stay together when an epoch is shuffled.
    """

    seed: int
    batch_size: int
    block_rows: int = 1


def store_reading(reading: ReadingSettings) -> StoreReading:
    """How a cache in a store is read. Raises CacheReadError if there can be no local folder."""
    if reading.local is None:
        return StoreReading(reading.in_flight)
    most_bytes = None if reading.local_gb is None else round(reading.local_gb * 1e9)
    local = LocalShards(reading.local, most_bytes, readers=local_world_size(), say=say)
    return StoreReading(reading.in_flight, local)


class CachedBatches:
    """Reads any step's batch of one rank, and ahead of it those that follow.

    names: of the encoders' arrays that are read; stop: the first step that is not read ahead;
    shared: by which the processes of a machine hold arrays in memory once, all of which then have
    to make this together; keeps: whether a batch stays valid when the next one is read.
    """

    def __init__(
        self,
        cached: CachedData,
        names: Sequence[str],
        order: Order,
        place: Placement,
        reading: ReadingSettings,
        stop: int,
        *,
        shared: SharedMemory | None = None,
        keeps: bool = False,
    ) -> None:
        self._cached, self._order, self._place = cached, order, place
        self._labels = torch.from_numpy(cached.labels).long().to(place.device)
        self._decoders = [
            Decoder(name, [view.column for view in cached.features[encoder_of(name)]], place.device)
            for name in names
        ]
        # What two of a batch are made from is read once.
        self._read = dict.fromkeys(
            (encoder_of(decoder.name), array)
            for decoder in self._decoders
            for array in decoder.stored
        )
        arrays = [(cached.latents, cached.latent_array)]
        arrays += [(cached.features[encoder], array) for encoder, array in self._read]
        sources: list[RowReader] = [
            JoinedRows([view.rows(name) for view in views]) for views, name in arrays
        ]
        self._of_images, captions = len(sources), cached.captions
        self._decode_captions = captions.decoder(place.device) if captions else None
        self._of_captions = captions.stored if captions else ()
        sources += [captions.reader.rows(name) for name in self._of_captions] if captions else []
        buffers = [Recycled(partial(self._buffer, source)) for source in sources]
        # What is copied to a GPU is kept there.
        self._kept = buffers if keeps and place.device.type != "cuda" else None
        far, slots = isinstance(cached.path, StorePath), reading.ahead + 1
        if far:
            slots = max(slots, self._slots_of_requests(reading.in_flight, sources))
        self._ring = BatchRing(
            hold_small(sources, round(reading.memory_gb * 1e9), shared),
            self._rows_of_sources,
            [[one.buffer() for one in buffers] for _ in range(slots)],
            # They wait for requests, of which a piece of a batch has one at least.
            threads=max(reading.threads, reading.in_flight) if far else reading.threads,
            pieces=reading.threads,
            stop=stop,
            timeout_seconds=reading.timeout_seconds,
            foresight=self._foresight(slots) if far else 0,
        )
        self._transfer = Transfer(self._take_with_rows, place.device, stop)

    def _slots_of_requests(self, in_flight: int, sources: Sequence[RowReader]) -> int:
        """Batches of buffers in which all requests find rows, while the oldest are waited for."""
        share = self._order.batch_size // self._place.world
        row_bytes = [math.prod(one.shape[1:]) * one.dtype.itemsize for one in sources]
        wanted = math.ceil(SPARE_ROWS * in_flight / (share * len(sources)))
        return min(wanted, MOST_AHEAD_BYTES // max(share * sum(row_bytes), 1)) + 1

    def _foresight(self, slots: int) -> int:
        """Steps whose rows are known to a local folder: those of some shards at least."""
        rows = FORESEEN_SHARDS * self._cached.latents[0].column.rows_per_shard
        return max(2 * slots, math.ceil(rows / self._order.batch_size))

    def _buffer(self, source: RowReader) -> npt.NDArray[Any]:
        """Memory for one batch of an array: pinned if it will be copied to a GPU."""
        shape = (self._order.batch_size // self._place.world, *source.shape[1:])
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

    def texts(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of the captions, [B], that the images of a step are told of by."""
        captions, seed, batch = self._cached.captions, self._order.seed, self._order.batch_size
        assert captions is not None, "no captions are read"
        drawn = drawn_numbers(seed, Stream.CAPTIONS, batch, step, self._place)
        return captions.rows(self.rows(step) % len(self._labels), drawn)

    def _rows_of_sources(self, step: int) -> list[npt.NDArray[np.int64]]:
        rows = [self.rows(step)] * self._of_images
        return [*rows, *([self.texts(step)] * len(self._of_captions) if self._of_captions else [])]

    def images(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of the images that all ranks together see in a step, whichever view."""
        return self._rows(step, replace(self._place, rank=0, world=1)) % len(self._labels)

    def _rows(self, step: int, place: Placement) -> npt.NDArray[np.int64]:
        seed, batch, block = self._order
        valid, rank, world = self._cached.valid, place.rank, place.world
        places = order(seed, step, rank, world, rows=len(valid), batch=batch, block=block)
        rows = valid[places]
        if self._cached.flip:
            rows = rows + len(self._labels) * mirrored(seed, batch, step, place)
        return rows

    def read(self, step: int) -> Named:
        """The batch of a step, on the rank's device; valid until the next one is read."""
        batch, decoders = self.read_stored(step)
        return {**batch, **{name: decode() for name, decode in decoders.items()}}

    def read_stored(self, step: int) -> tuple[Named, Mapping[str, Callable[[], Tensor]]]:
        """The batch of a step, and what decodes each of its encoders' arrays."""
        every = self._transfer.get(step)
        moments, *stored = every[: self._of_images]
        told, rows = every[self._of_images : -1], every[-1]
        arrays = dict(zip(self._read, stored, strict=True))
        # Of rows [B], those of the second view follow all of the first.
        views, images = rows // len(self._labels), rows % len(self._labels)
        decoders = {}
        for decode in self._decoders:
            own = {name: arrays[encoder_of(decode.name), name] for name in decode.stored}
            decoders[decode.name] = partial(decode, own, views)
        if self._cached.mirrors_pixels:
            is_mirrored = (views == 1)[:, None, None, None]
            moments = torch.where(is_mirrored, moments.flip(-1), moments)
        batch = {"moments": moments, "labels": self._labels[images]}
        if self._decode_captions is not None:
            batch |= self._decode_captions(dict(zip(self._of_captions, told, strict=True)))
        return batch, decoders

    def prefetch(self) -> None:
        """Have the next batch copied to a GPU, when the work on the last one is launched."""
        self._transfer.prefetch()

    @property
    def wait_seconds(self) -> float:
        return self._transfer.wait_seconds

    def take(self, step: int) -> list[Tensor]:
        """Moments and encoders' arrays of a step as they are stored, in memory."""
        tensors = [torch.from_numpy(buffer) for buffer in self._ring.take(step)]
        if self._kept is not None:
            self._ring.exchange(step, [one.buffer() for one in self._kept])
        return tensors

    def _take_with_rows(self, step: int) -> list[Tensor]:
        rows = torch.from_numpy(self.rows(step))
        is_copied = self._place.device.type == "cuda"
        return [*self.take(step), rows.pin_memory() if is_copied else rows]

    def close(self) -> None:
        self._ring.close()
