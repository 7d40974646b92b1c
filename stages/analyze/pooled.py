"""One vector of each image from what is cached of it: the references of an analysis.

N images, B images that are read at once, D features.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.reader import ColumnReader
from stages.progress import progress

# 64 rows of 1,024 tokens of 1,536 features are 400 MB.
READ_ROWS = 64

Rows = npt.NDArray[np.int64]


def parts_of(rows: Rows) -> Iterator[Rows]:
    """Rows in parts of which all tokens fit into memory."""
    yield from np.array_split(rows, range(READ_ROWS, len(rows), READ_ROWS))


def mean_tokens(reader: ColumnReader, rows: Rows) -> Tensor:
    """The mean of an encoder's tokens for each image, float32 [N, D]."""
    return _gathered("tokens", reader, rows, lambda part: reader.vectors(part, pooled=True))


def class_tokens(reader: ColumnReader, rows: Rows) -> Tensor | None:
    """An encoder's class token for each image, float32 [N, D], if it has one."""
    if not reader.has_class_token:
        return None
    return torch.from_numpy(reader.vectors(rows))


def mean_latents(reader: ColumnReader, rows: Rows) -> Tensor:
    """The mean of an image's latent over its cells, float32 [N, C]; of the posterior's mean."""

    def pooled(part: Rows) -> npt.NDArray[np.float32]:
        moments = reader.values("moments", part)
        means: npt.NDArray[np.float32] = moments[:, : moments.shape[1] // 2].mean(axis=(2, 3))
        return means

    return _gathered("latents", reader, rows, pooled)


def _gathered(
    what: str, reader: ColumnReader, rows: Rows, pooled: Callable[[Rows], npt.NDArray[np.float32]]
) -> Tensor:
    """Vectors of all rows, read in parts. what: is read, for the progress."""
    found, title = [], f"{what} of {reader.column.title}"
    with progress(title, len(rows), "images") as advance:
        for part in parts_of(rows):
            found.append(torch.from_numpy(pooled(part)))
            advance(len(part), "")
    return torch.cat(found)
