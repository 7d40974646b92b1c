"""The images of a cache as a map-style data set, for those who want a DataLoader of their own."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from stages.train.batch_stream import CLASS_TOKEN, Wanted, open_data
from stages.train.train_settings import CachedTensors

Item: TypeAlias = dict[str, Any]


class CachedImages(Dataset[Item]):
    """All images that hold tensors in every column that is read, in the order of the cache.

    An item has the image's `key` and `label`, `moments`, float32 [2C, h, w], and by encoder
    `tokens`, float32 [T, D], and `class_tokens`, float32 [D]. Every process opens the cache for
    itself. remake: gives the same data set in another process; it can be pickled. Raises
    IncompleteCacheError if a column is missing or not finished.
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
        self._data = open_data(self._tensors, self._wanted, verify=self._verify)
        self._owner = os.getpid()

    def __reduce__(self) -> tuple[Callable[[], "CachedImages"], tuple[()]]:
        return self._remake, ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._data.valid)

    def __getitem__(self, index: int) -> Item:
        """An image. Raises IndexError if there is none of this number."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several images, read at once, as DataLoader asks for the items of a batch."""
        if self._owner != os.getpid():
            self._open()
        data, rows = self._data, self._data.valid[np.asarray(indices, np.int64)]
        moments = data.latents[0].values("moments", rows)
        tokens = {
            name: data.features[name][0].values("tokens", rows) for name in self._wanted.tokens
        }
        class_tokens = {
            name: data.features[name][0].read(CLASS_TOKEN, rows).astype(np.float32)
            for name in self._wanted.class_tokens
        }
        return [
            {
                "key": str(data.keys[row]),
                "label": int(data.labels[row]),
                "moments": torch.from_numpy(moments[place]),
                "tokens": {n: torch.from_numpy(rows[place]) for n, rows in tokens.items()},
                "class_tokens": {
                    n: torch.from_numpy(rows[place]) for n, rows in class_tokens.items()
                },
            }
            for place, row in enumerate(rows.tolist())
        ]
