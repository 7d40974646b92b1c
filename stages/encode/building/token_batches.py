"""Batches of an encoder's tokens as the cache has them: what columns are derived from.

B images, T tokens, D features.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.layout import VALID
from cache.reader import PartialReader
from cache.rows import RowTable
from stages.encode.images.crop_batches import read_ahead

Tag = TypeVar("Tag")


class Batch(Protocol):
    """What rows of a column are made of: crops, or tokens of another column.

    valid: bool [B], False for images that could not be decoded.
    """

    @property
    def valid(self) -> npt.NDArray[np.bool_]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice | npt.NDArray[np.intp]) -> "Batch": ...

    def to(self, device: torch.device) -> "Batch": ...


class Reader(Protocol):
    """Gives such batches of the rows of a cache, of `batch_size` images at most.

    failures: reasons by the keys of images that could not be decoded, filled on the way.
    """

    @property
    def rows(self) -> RowTable: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def failures(self) -> dict[str, str]: ...

    def batches(self, rows: Sequence[int]) -> Iterator[Batch]: ...

    def tagged_batches(
        self, groups: Iterable[tuple[Tag, Sequence[int]]]
    ) -> Generator[tuple[Tag, Batch]]: ...


@dataclass(frozen=True)
class TokenBatch:
    """A batch. tokens: float32 [B, T, D]; valid: bool [B], False for images without tokens."""

    tokens: Tensor
    valid: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tokens)

    def __getitem__(self, part: slice | npt.NDArray[np.intp]) -> "TokenBatch":
        return TokenBatch(self.tokens[part], self.valid[part])

    def to(self, device: torch.device) -> "TokenBatch":
        """The same with its tokens on a device."""
        return replace(self, tokens=self.tokens.to(device))


@dataclass(frozen=True)
class TokenReader:
    """Gives the tokens of rows, each compared with its checksum.

    source: the encoder's column; batch_size: images per batch; failures: stays empty, as no image
    is opened.
    """

    source: PartialReader
    rows: RowTable
    batch_size: int
    pool: Executor
    failures: dict[str, str] = field(default_factory=dict)

    def batches(self, rows: Sequence[int]) -> Iterator[TokenBatch]:
        """The tokens of some rows, `batch_size` images at a time."""
        return (batch for _, batch in self.tagged_batches([(None, rows)]))

    def tagged_batches(
        self, groups: Iterable[tuple[Tag, Sequence[int]]]
    ) -> Generator[tuple[Tag, TokenBatch]]:
        """The tokens of groups of rows, read ahead, each batch with its group's tag."""
        return read_ahead(groups, self.batch_size, lambda rows: self.pool.submit(self._read, rows))

    def _read(self, rows: Sequence[int]) -> TokenBatch:
        arrays = self.source.read(np.asarray(rows))
        tokens = self.source.decoded("tokens", arrays)
        return TokenBatch(torch.from_numpy(tokens), arrays[VALID.name].astype(np.bool_))
