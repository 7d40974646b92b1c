"""Nearest neighbours by features: images like one, and how alike two sets are (CKNNA).

Centred kernel nearest-neighbour alignment (Huh et al. 2024, arXiv 2405.07987) in the form of REPA
(arXiv 2410.06940, eq. 22 to 24). N images, D features of an image, k
neighbours, Q images that are looked for, P rows of a part.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.layout import Column
from stages.analyze.analysis_options import AlignmentOptions, AnalysisError
from stages.progress import progress
from stages.train.compute import arithmetic

# Rows of the kernel that are in memory at once.
CHUNK_ROWS = 1024
# Features that vary less than this, relative to their length, vary by rounding alone.
ROUNDING = 1e-6
# Of tokens, as float32, that are in memory at once.
PART_BYTES = 16 << 20
# Of cosines: further digits depend on how many are computed at once.
DECIMALS = 9

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of each image: all that CKNNA needs of a set of features.

    indices: int64 [N, k]; similarities: the centred kernel there, float64 [N, k]; both on the CPU.
    """

    indices: Tensor
    similarities: Tensor


def pooled_neighbours(features: Tensor, options: AlignmentOptions) -> Neighbours:
    """The neighbours of images by pooled features [N, D], in exact float32."""
    with arithmetic("float32", deterministic=True):
        prepared = features if options.is_raw else F.normalize(features.float(), dim=1)
        return find_neighbours(prepared, options.neighbours)


def find_neighbours(features: Tensor, count: int, chunk_rows: int = CHUNK_ROWS) -> Neighbours:
    """The `count` nearest neighbours of each image by the centred linear kernel.

    The kernel is <x_i, x_j> - mean_l <x_i, x_l>, of features as they are. An image is not its own
    neighbour. Of equally near ones any may be taken. Features that are the same for all images
    have similarities of zero.

    features: [N, D], on any device; in memory are `chunk_rows` rows of the kernel. Raises
    AnalysisError if features are not finite or if there are no more images than neighbours.
    """
    if len(features) <= count:
        raise AnalysisError(
            f"{count} neighbours were asked for among {len(features)} images",
            remedy="Take more images (--rows) or fewer neighbours (--neighbours).",
        )
    if not torch.isfinite(features).all():
        raise AnalysisError(
            "Features are infinite or not a number: these weights, or this column of the cache, "
            "overflow",
            remedy="Choose another checkpoint, or run `repa-cache verify`.",
        )
    features = features.float()
    # Subtracting a mean twice takes off what rounding left of it.
    centred = features - features.mean(dim=0)
    centred -= centred.mean(dim=0)
    if centred.norm() <= ROUNDING * features.norm():
        centred.zero_()
    indices, similarities = [], []
    for start in range(0, len(features), chunk_rows):
        # <x_i, x_j - mean> is the centred kernel, without the difference of two large numbers.
        kernel = features[start : start + chunk_rows] @ centred.T
        kernel.diagonal(start).fill_(-torch.inf)
        nearest = kernel.topk(count)
        indices.append(nearest.indices.cpu())
        similarities.append(nearest.values.cpu().double())
    return Neighbours(torch.cat(indices), torch.cat(similarities))


def cknna(one: Neighbours, other: Neighbours) -> float:
    """CKNNA between two sets of features of the same images: 1 for equal ones.

    Align(K, L) / sqrt(Align(K, K) Align(L, L)), where Align(K, L) is the sum of K_ij L_ij over
    images i and those j that are among the neighbours of i in both sets. Independent features
    share k / N of their neighbours, and have about that. It is 0 if the features of either set
    are all equal.
    """
    squares = [float(found.similarities.square().sum()) for found in (one, other)]
    if 0 in squares:
        return 0.0
    return _align(one, other) / math.sqrt(squares[0] * squares[1])


def _align(one: Neighbours, other: Neighbours) -> float:
    total = 0.0
    for position in range(one.indices.shape[1]):
        index = one.indices[:, position, None]
        shared = (other.similarities * (other.indices == index)).sum(dim=1)
        total += float(one.similarities[:, position] @ shared)
    return total


class Vectors(Protocol):
    """One vector for each image, from a column. has_class_token: whether no tokens are read."""

    @property
    def column(self) -> Column: ...

    @property
    def has_class_token(self) -> bool: ...

    def vectors(self, rows: RowNumbers) -> npt.NDArray[np.float32]:
        """Of rows [P], as [P, D]."""


@dataclass(frozen=True)
class Neighbour:
    """An image that resembles another: its row, and the cosine between their vectors."""

    row: int
    similarity: float


def find_nearest(
    reader: Vectors,
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


def _parts(reader: Vectors, among: RowNumbers, part_bytes: int) -> Iterator[RowNumbers]:
    array = reader.column.array("class_token" if reader.has_class_token else "tokens")
    count = max(1, part_bytes // (4 * int(np.prod(array.row_shape))))
    return (among[start : start + count] for start in range(0, len(among), count))


def _directions(reader: Vectors, rows: RowNumbers) -> Tensor:
    """The vectors of rows, of length 1, float64 [P, D]."""
    return F.normalize(torch.from_numpy(reader.vectors(rows)).double(), dim=-1)
