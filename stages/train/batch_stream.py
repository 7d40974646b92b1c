"""Batches and a data set of a cache for loops of one's own, read as the trainer reads them.

B images of a rank, C latent channels, h and w the latent's sides, T tokens, D features.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cache.errors import IncompleteCacheError
from cache.stores.kept_rows import BY_RANGES, StoreReading
from stages.model.conditions import Context
from stages.placement import Placement
from stages.train.batches import CachedBatches, Named, Order, store_reading
from stages.train.cached_captions import CONTEXT, SEEN
from stages.train.cached_data import CLASS_TOKEN, TOKENS, CachedData
from stages.train.randomness import Stream, draw, seed_for
from stages.train.train_settings import CachedTensors, ReadingSettings

Item: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Cached tensors of the B images that a rank sees at a step, all on its device.

    moments: mean and standard deviation of the latents, float32 [B, 2C, h, w], or latents as they
    are cached, [B, C, h, w], of an autoencoder without a posterior; latents: drawn from them anew
    at every step and scaled, float32 [B, C, h, w]; labels: int64 [B]; tokens: of
    each encoder, float32 [B, T, D]; class_tokens: float32 [B, D]; keys: of the images; captions,
    context: a caption of each image and its tokens, if captions are read. Latents are drawn, and
    tokens decoded, when they are first asked for.
    """

    step: int
    moments: Tensor
    labels: Tensor
    tokens: Mapping[str, Tensor]
    class_tokens: Mapping[str, Tensor]
    keys: list[str]
    draw_latents: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    captions: list[str] | None = None
    context: Context | None = None

    @cached_property
    def latents(self) -> Tensor:
        return self.draw_latents(self.moments)


class Decoded(Mapping[str, Tensor]):
    """Tensors by name, each made when it is first asked for. make: what makes them."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]]) -> None:
        self._make = make
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._make[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


@dataclass(frozen=True)
class Wanted:
    """Of which encoders a batch has tokens, and of which it has class tokens."""

    tokens: Sequence[str]
    class_tokens: Sequence[str]

    @property
    def encoders(self) -> tuple[str, ...]:
        """Those whose columns are read, each once."""
        return tuple(dict.fromkeys((*self.tokens, *self.class_tokens)))

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays, as `stages.train.cached_data` has them."""
        tokens = (f"{encoder}/{TOKENS}" for encoder in self.tokens)
        return (*tokens, *(f"{encoder}/{CLASS_TOKEN}" for encoder in self.class_tokens))


def stream(
    tensors: CachedTensors,
    wanted: Wanted,
    order: Order,
    place: Placement,
    reading: ReadingSettings,
    steps: range,
) -> Iterator[Batch]:
    """The batches of some steps, read ahead until the iterator is closed or collected.

    Raises IncompleteCacheError if a column is missing or not finished, ValueError if a batch
    cannot be shared by so many ranks.
    """
    cached = open_data(tensors, wanted, verify=reading.verify, reading=store_reading(reading))
    share, rest = divmod(order.batch_size, place.world)
    if not share or rest or not 0 <= place.rank < place.world:
        raise ValueError(
            f"{order.batch_size} images are no batch for rank {place.rank} of {place.world}"
        )

    def batches() -> Iterator[Batch]:
        reader = CachedBatches(cached, wanted.arrays, order, place, reading, steps.stop, keeps=True)
        with closing(reader):
            for step in steps:
                keys = cached.keys[reader.rows(step) % len(cached.keys)].tolist()
                said = cached.captions
                captions = None if said is None else list(map(said.text, reader.texts(step)))
                read = batch(step, keys, captions, *reader.read_stored(step))
                # Who takes it may wait for the GPU before asking for the next one.
                reader.prefetch()
                yield read

    def batch(
        step: int,
        keys: list[str],
        captions: list[str] | None,
        read: Named,
        arrays: Mapping[str, Callable[[], Tensor]],
    ) -> Batch:
        def draw_latents(moments: Tensor) -> Tensor:
            # The same numbers as in training with this seed.
            seed = seed_for(order.seed, Stream.POSTERIOR, step)
            normal = draw((order.batch_size, *cached.latent_shape), seed, place)
            return cached.scaling.to(place.device).sample(moments, normal)

        return Batch(
            step=step,
            moments=read["moments"].float(),
            labels=read["labels"],
            tokens=Decoded({name: arrays[f"{name}/{TOKENS}"] for name in wanted.tokens}),
            class_tokens=Decoded(
                {name: arrays[f"{name}/{CLASS_TOKEN}"] for name in wanted.class_tokens}
            ),
            keys=keys,
            draw_latents=draw_latents,
            captions=captions,
            context=Context(read[CONTEXT], read.get(SEEN)) if CONTEXT in read else None,
        )

    return batches()


def open_data(
    tensors: CachedTensors, wanted: Wanted, *, verify: bool, reading: StoreReading = BY_RANGES
) -> CachedData:
    """The columns that are read. Raises IncompleteCacheError if one lacks what is wanted."""
    cached = CachedData(tensors, wanted.encoders, verify=verify, reading=reading)
    for encoder in wanted.class_tokens:
        reader = cached.features[encoder][0]
        if not reader.has_class_token:
            raise IncompleteCacheError("it has no class tokens", where=reader.column.folder)
    return cached


class CachedImages(Dataset[Item]):
    """All images that hold tensors in every column that is read, in the order of the cache.

    An item has the image's `key` and `label`, `moments`, float32 [2C, h, w], or [C, h, w] as in a
    batch, and by encoder `tokens`, float32 [T, D], and `class_tokens`, float32 [D]. Every process
    opens the cache for itself. remake: gives the same data set in another process; it can be
    pickled. Raises IncompleteCacheError if a column is missing or not finished.
    """

    def __init__(
        self,
        tensors: CachedTensors,
        wanted: Wanted,
        *,
        verify: bool,
        remake: Callable[[], "CachedImages"],
    ) -> None:
        self._tensors, self._wanted, self._verify = tensors, wanted, verify
        self._remake = remake
        self._open()

    def _open(self) -> None:
        self._cached = open_data(self._tensors, self._wanted, verify=self._verify)
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[Callable[[], "CachedImages"], tuple[()]]:
        return self._remake, ()

    def __len__(self) -> int:
        return len(self._cached.valid)

    def __getitem__(self, index: int) -> Item:
        """An image. Raises IndexError if there is none of this number."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several images, read at once, as DataLoader asks for the items of a batch."""
        if self._owner != os.getpid():
            self._open()
        cached, rows = self._cached, self._cached.valid[np.asarray(indices, np.int64)]
        latents, tokens, class_tokens = cached.latents[0].values(cached.latent_array, rows), {}, {}
        for name in self._wanted.tokens:
            tokens[name] = cached.features[name][0].values(TOKENS, rows)
        for name in self._wanted.class_tokens:
            class_tokens[name] = cached.features[name][0].vectors(rows)
        # Arrays of all rows [B, ...] become tensors of one each.
        return [
            {
                "key": str(cached.keys[row]),
                "label": int(cached.labels[row]),
                "moments": torch.from_numpy(latents[place]),
                "tokens": {n: torch.from_numpy(some[place]) for n, some in tokens.items()},
                "class_tokens": {
                    n: torch.from_numpy(some[place]) for n, some in class_tokens.items()
                },
            }
            for place, row in enumerate(rows.tolist())
        ]
