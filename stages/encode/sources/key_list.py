"""Keys of a data set of millions of images."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt


class KeyList(Sequence[str]):
    """Keys as an array [N] of numpy's strings: a third of the memory that a tuple takes."""

    def __init__(self, keys: npt.NDArray[Any]) -> None:
        self._keys = keys

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._keys, dtype, copy=copy)

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "KeyList": ...

    def __getitem__(self, place: int | slice) -> "str | KeyList":
        found = self._keys[place]
        return KeyList(found) if isinstance(place, slice) else str(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyList) and np.array_equal(self._keys, other._keys)
