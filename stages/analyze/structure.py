"""Spatial structure of an encoder's tokens: how their likeness depends on where they lie.

Metrics of iREPA (arXiv 2512.10794, appendix B) and others. R images, T = S x S tokens of an image,
D features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.reader import ColumnReader
from stages.analyze.pooled import Rows, parts_of
from stages.evaluate.metrics import Gaussian, RunningGaussian
from stages.progress import progress

# Tokens of this many times the median length are outliers, in which vision transformers keep what
# is of no place (arXiv 2309.16588).
OUTLIER_LENGTH = 3.0

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Structure:
    """Spatial structure of an encoder's tokens, as means over images.

    lds: local against distant similarity; contrast: RMS spatial contrast; decay: the mean cosine
    of tokens at each Manhattan distance from 1 on; effective_rank: of the covariance of tokens;
    outliers: the share of tokens that are very long; images: that were looked at.
    """

    lds: float
    contrast: float
    decay: Values
    effective_rank: float
    outliers: float
    images: int


def measure_structure(reader: ColumnReader, rows: Rows, device: torch.device) -> Structure:
    """The structure of the tokens of some rows [R], of a column that holds an encoder's tokens."""
    tokens_per_image, _ = reader.column.array("tokens").row_shape
    cosines = torch.zeros(tokens_per_image, tokens_per_image, dtype=torch.float64)
    running, contrast, lengths = RunningGaussian(), 0.0, []
    title = f"structure of {reader.column.title}"
    with progress(title, len(rows), "images") as advance:
        for part in parts_of(rows):
            tokens = torch.from_numpy(reader.values("tokens", part))
            running.add(tokens.flatten(0, 1).numpy())
            lengths.append(tokens.norm(dim=2))
            unit = F.normalize(tokens.to(device), dim=2)
            cosines += torch.bmm(unit, unit.mT).sum(dim=0).cpu()
            contrast += float(spatial_contrast(unit).sum())
            advance(len(part), "")
    cosines /= len(rows)
    return Structure(
        lds=local_against_distant(cosines),
        contrast=contrast / len(rows),
        decay=by_distance(cosines),
        effective_rank=effective_rank(running.gaussian()),
        outliers=outlier_share(torch.cat(lengths)),
        images=len(rows),
    )


def distances(side: int) -> npt.NDArray[np.int64]:
    """Manhattan distances between the tokens of a grid, [T, T]."""
    row, column = np.divmod(np.arange(side**2), side)
    apart: npt.NDArray[np.int64] = abs(row[:, None] - row) + abs(column[:, None] - column)
    return apart


def local_against_distant(cosines: Tensor) -> float:
    """LDS (iREPA, section 3): the mean cosine of near tokens less that of distant ones.

    Near are those at distances from 1 to less than half a side, distant all others.
    cosines: the mean over images, [T, T].
    """
    side = round(len(cosines) ** 0.5)
    apart, values = distances(side), cosines.numpy()
    is_near = apart < side / 2
    return float(values[is_near & (apart > 0)].mean() - values[~is_near].mean())


def by_distance(cosines: Tensor) -> Values:
    """The mean cosine at each Manhattan distance from 1 to the grid's largest."""
    apart = distances(round(len(cosines) ** 0.5)).ravel()
    sums = np.bincount(apart, cosines.numpy().ravel())
    means: Values = (sums / np.bincount(apart))[1:]
    return means


def spatial_contrast(unit: Tensor) -> Tensor:
    """RMSC (iREPA, appendix B) of each image, [R]: how far its tokens lie from their mean.

    unit: tokens of unit length, [R, T, D]. 0 is for equal tokens, 1 for such without a mean.
    """
    offset = unit - unit.mean(dim=1, keepdim=True)
    return offset.square().sum(dim=2).mean(dim=1).sqrt()


def effective_rank(tokens: Gaussian) -> float:
    """The participation ratio of the covariance's eigenvalues, (sum e)^2 / sum e^2: 1 to D.

    It is 0 if all tokens are equal.
    """
    covariance = tokens.covariance
    squares = float(np.square(covariance).sum())
    return float(np.trace(covariance)) ** 2 / squares if squares else 0.0


def outlier_share(lengths: Tensor) -> float:
    """The share of tokens that are more than three times as long as the median one."""
    return float((lengths > OUTLIER_LENGTH * lengths.median()).double().mean())
