"""The arrays of a batch by name: what is read of an encoder's column, and how it becomes numbers.

`ENCODER/tokens` are an encoder's tokens [B, T, D]; `ENCODER/directions` the same up to a positive
factor for each token, which spares int8 codes their scales; any other array of the column has its
own name, such as `ENCODER/class_token` [B, D]. All are float32. B images, T tokens, D features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cache.layout import Column
from cache.storage import STORAGES, Storage

DIRECTIONS, TOKENS = "directions", "tokens"


def encoder_of(name: str) -> str:
    """Whose array a name means."""
    return name.rpartition("/")[0]


def stored_arrays(name: str, storage: Storage) -> tuple[str, ...]:
    """The arrays of an encoder's column that one of a batch is made from."""
    array = name.rpartition("/")[2]
    if array == DIRECTIONS:
        return (TOKENS,)
    return (TOKENS, *storage.beside) if array == TOKENS else (array,)


def shape_of(name: str, column: Column) -> tuple[int, ...]:
    """Of one of a batch, for an image."""
    return column.array(stored_arrays(name, storage_of(column))[0]).row_shape


def storage_of(column: Column) -> Storage:
    """How an encoder's tokens are stored."""
    return STORAGES[str(column.recipe["storage"])]


class Decoder:
    """Turns the stored arrays of an encoder into one of a batch, on the device.

    views: the columns of each view of an image; stored: the names of the arrays that it takes.
    """

    def __init__(self, name: str, views: Sequence[Column], device: torch.device) -> None:
        self.name = name
        self._array = name.rpartition("/")[2]
        self._storage = storage_of(views[0])
        self.stored = stored_arrays(name, self._storage)
        self._constants = {
            constant: torch.from_numpy(np.stack([view.constants[constant] for view in views])).to(
                device
            )
            for constant in views[0].constants
        }

    def __call__(self, arrays: Mapping[str, Tensor], views: Tensor) -> Tensor:
        """Numbers, float32 [B, ...].

        arrays: the rows of those stored, by name; views: int64 [B], the view that each image is.
        """
        # A constant of each view, [views, D], becomes that of each image, [B, 1, D].
        constants = {name: values[views][:, None] for name, values in self._constants.items()}
        decoded: Tensor
        if self._array == DIRECTIONS:
            decoded = self._storage.directions(arrays[TOKENS], constants)
        elif self._array == TOKENS:
            decoded = self._storage.decode(TOKENS, arrays, constants)
        else:
            decoded = arrays[self._array].float()
        return decoded
