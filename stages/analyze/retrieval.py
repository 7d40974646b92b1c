"""Images whose features resemble those of an image.

Q images that are looked for, K neighbours, P rows of a part, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.reader import ColumnReader
from stages.progress import progress

RowNumbers = npt.NDArray[np.int64]

# Of tokens, as float32, that are in memory at once.
PART_BYTES = 16 << 20
DECIMALS = 9


@dataclass(frozen=True)
class Neighbour:
    """An image that resembles another: its row, and the cosine between their vectors."""

    row: int
    similarity: float


def find_nearest(
    reader: ColumnReader,
    rows: RowNumbers,
    among: RowNumbers,
    count: int,
    part_bytes: int = PART_BYTES,
) -> list[list[Neighbour]]:
    """The nearest images of each of rows [Q], nearest first; an image is not its own neighbour.

    They are compared by the cosine of class tokens, or of mean tokens where an encoder has none.
    among: the rows to look at, ascending, of which `part_bytes` are in memory at once.
    """
    wanted = _directions(reader, rows)
    best = torch.empty((len(rows), 0), dtype=torch.float64)
    best_rows = torch.empty((len(rows), 0), dtype=torch.int64)
    title = f"neighbours by {reader.column.title}"
    with progress(title, len(among), "images") as advance:
        for part in _parts(reader, among, part_bytes):
            # Rounding hides how a product is summed up, which depends on the size of the part.
            cosines = (wanted @ _directions(reader, part).T).round(decimals=DECIMALS)
            numbers = torch.from_numpy(part).expand(len(rows), -1)
            cosines[numbers == torch.from_numpy(rows)[:, None]] = -torch.inf
            # Stable: of equal ones the first row comes first, however the rows are cut.
            best, order = torch.cat([best, cosines], 1).sort(dim=1, descending=True, stable=True)
            best, order = best[:, :count], order[:, :count]
            best_rows = torch.cat([best_rows, numbers], 1).gather(1, order)
            advance(len(part), "")
    return [
        [Neighbour(row, cosine) for row, cosine in zip(*pair, strict=True) if cosine > -np.inf]
        for pair in zip(best_rows.tolist(), best.tolist(), strict=True)
    ]


def _parts(reader: ColumnReader, among: RowNumbers, part_bytes: int) -> Iterator[RowNumbers]:
    array = reader.column.array("class_token" if reader.has_class_token else "tokens")
    count = max(1, part_bytes // (4 * int(np.prod(array.row_shape))))
    return (among[start : start + count] for start in range(0, len(among), count))


def _directions(reader: ColumnReader, rows: RowNumbers) -> Tensor:
    """The vectors of rows, of length 1, float64 [P, D]."""
    return normalize(torch.from_numpy(reader.vectors(rows)).double(), dim=-1)
