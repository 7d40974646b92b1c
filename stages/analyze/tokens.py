"""What an encoder's tokens show: pooled to one vector, as colours, and their spatial structure.

Metrics of structure are those of iREPA (arXiv 2512.10794, appendix B) and others. N images of which
vectors are read, B at once; R images that are looked at, T tokens of an image on a square grid, D
features, K components, S side of an image in px.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cache.reader import ColumnReader
from stages.evaluate.metrics import Gaussian, RunningGaussian
from stages.latents import latent_shape, main_array
from stages.progress import progress

# 64 rows of 1,024 tokens of 1,536 features are 400 MB.
READ_ROWS = 64

# Tokens of this many times the median length are outliers, in which vision transformers keep what
# is of no place (arXiv 2309.16588).
OUTLIER_LENGTH = 3.0

Values = npt.NDArray[np.float64]
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
        channels, *_ = latent_shape(reader.column)
        values = reader.values(main_array(reader.column).name, part)
        means: npt.NDArray[np.float32] = values[:, :channels].mean(axis=(2, 3))
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


# The share at both ends of a component's range that is cut off: outliers would dim the rest.
OUTLIERS = 0.01


def principal_components(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal components of all tokens together, and each one's share of the variance.

    tokens: [R, T, D]; returns float64 [R, T, K] and [K]. The sign of a component, which is
    arbitrary, makes its largest loading positive.
    """
    points = tokens.flatten(0, 1).double()
    points = points - points.mean(0)
    variances, axes = _main_axes(points, count)
    total = points.square().sum()
    return (points @ axes).unflatten(0, tokens.shape[:2]), variances / total.clamp(min=1e-300)


def _main_axes(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The directions [D, K] in which points [B, D] are largest, and their sums of squares [K]."""
    squares, axes = torch.linalg.eigh(points.T @ points)
    squares, axes = squares.flip(0)[:count], axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return squares.clamp(min=0), axes * torch.where(largest < 0, -1.0, 1.0)


def as_colours(components: Tensor) -> Tensor:
    """Three components [R, T, 3] as red, green and blue, float64 from 0 to 1.

    Each is stretched over its range in all images, so that equal colours are equal components.
    """
    edges = torch.tensor([OUTLIERS, 1 - OUTLIERS], dtype=components.dtype)
    low, high = torch.quantile(components.flatten(0, 1), edges, dim=0).unbind()
    colours: Tensor = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return colours


def similarities(tokens: Tensor, patch: int) -> Tensor:
    """The cosine between one token of every image and all tokens of that image, [R, T].

    tokens: [R, T, D]; patch: which token, counted row by row.
    """
    unit = F.normalize(tokens.float(), dim=-1)
    return torch.einsum("rtd,rd->rt", unit, unit[:, patch])


def embedded_directions(tokens: Tensor, dims: int) -> Tensor:
    """Directions of tokens in few dimensions, whose inner products are the cosines, nearly.

    tokens: [R, T, D]; returns float64 [R, T, K], K being D where that is less than `dims`. No
    other K dimensions keep the matrix of all cosines better (Eckart and Young, 1936).
    """
    unit = F.normalize(tokens.flatten(0, 1).double(), dim=-1)
    _, axes = _main_axes(unit, dims)
    directions: Tensor = (unit @ axes).unflatten(0, tokens.shape[:2])
    return directions


def relative_errors(stored: Tensor, fresh: Tensor) -> Tensor:
    """How far each stored token is from the fresh one, relative to its norm, [R, T]."""
    errors: Tensor = (stored - fresh).norm(dim=-1) / fresh.norm(dim=-1).clamp(min=1e-12)
    return errors


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """The peak signal-to-noise ratio in dB of every pair of images, uint8 [R, 3, S, S], as [R]."""
    errors = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    decibels: Tensor = 10 * torch.log10(255**2 / errors.clamp(min=1e-12))
    return decibels


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

    @property
    def cds(self) -> float:
        """CDS (iREPA, appendix B): how much the mean cosine falls with each step of distance.

        Minus the slope of the line through `decay`.
        """
        slope, _ = np.polyfit(np.arange(1, len(self.decay) + 1), self.decay, 1)
        return float(-slope)


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
