"""Arrays of a cache that are called as numpy's."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cache.errors import IncompleteCacheError
from cache.layout import Column
from cache.reader import ColumnReader
from cache.shard_files import RowNumbers

Floats = npt.NDArray[np.float32]


class Rows:
    """An array [N, ...] of a cache, by any index that numpy takes for rows, as float32."""

    def __init__(self, column: Column, name: str, read: Callable[[RowNumbers], Floats]) -> None:
        self.shape = (column.rows, *column.array(name).row_shape)
        self._rows, self._read = np.arange(column.rows), read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Floats:
        """Rows [B, ...], or one for a number. Raises IndexError if there are none such."""
        rows = self._rows[index]
        return self._read(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])

    def __repr__(self) -> str:
        return f"<rows {' x '.join(map(str, self.shape))}>"


class Features:
    """What a cache holds of an encoder.

    valid: which rows, [N], hold tensors: all but those whose image could not be decoded.
    """

    def __init__(self, reader: ColumnReader) -> None:
        self._reader = reader

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        return self._reader.valid

    @property
    def tokens(self) -> Rows:
        """Tokens, [N, T, D]."""
        return Rows(self._reader.column, "tokens", partial(self._reader.values, "tokens"))

    @property
    def class_tokens(self) -> Rows:
        """Class tokens, [N, D]. Raises IncompleteCacheError if it has none."""
        if not self._reader.has_class_token:
            raise IncompleteCacheError(
                "this encoder has no class token", where=self._reader.column.folder
            )
        return Rows(self._reader.column, "class_token", self._reader.vectors)
