"""What the tokens of a few images show: their main directions, who resembles whom, how long.

R images, T tokens of an image, D features, K components, S side of an image in px.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
    unit = normalize(tokens.float(), dim=-1)
    return torch.einsum("rtd,rd->rt", unit, unit[:, patch])


def embedded_directions(tokens: Tensor, dims: int) -> Tensor:
    """Directions of tokens in few dimensions, whose inner products are the cosines, nearly.

    tokens: [R, T, D]; returns float64 [R, T, K], K being D where that is less than `dims`. No
    other K dimensions keep the matrix of all cosines better (Eckart and Young, 1936).
    """
    unit = normalize(tokens.flatten(0, 1).double(), dim=-1)
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
