"""Keys of a data set of millions of images."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from cache.keys import Keys


class KeyList(Sequence[str]):
    """Keys as an array [N] of numpy's strings, in half of the memory that a tuple takes."""

    def __init__(self, array: Keys) -> None:
        self.array = array

    @classmethod
    def of(cls, names: Sequence[str]) -> "KeyList":
        """The names as such a list."""
        return cls(np.array(names, np.dtypes.StringDType()))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> "KeyList": ...

    def __getitem__(self, place: int | slice) -> "str | KeyList":
        found = self.array[place]
        return KeyList(found) if isinstance(place, slice) else str(found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyList) and np.array_equal(self.array, other.array)


def key_array(keys: Sequence[str]) -> Keys:
    """Keys as such an array, which is not copied if there is one."""
    return (keys if isinstance(keys, KeyList) else KeyList.of(keys)).array
