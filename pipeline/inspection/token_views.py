"""Tokens as pictures: their components in colours, their similarity to one patch, in brightness.

R images, T tokens on a square grid, D features, K dimensions, g side of a grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from torch import Tensor

from stages.analyze.tokens import (
    as_colours,
    embedded_directions,
    principal_components,
    similarities,
)

Pixels = npt.NDArray[np.uint8]

# Equal steps in brightness for equal steps in similarity, also for most who see colours otherwise.
PALETTE = "viridis"
# Dimensions of the directions that a page computes with, and what they may take of it in all.
DIRECTION_DIMS = 128
DIRECTION_BYTES = 2_500_000
CODES = 127


@dataclass(frozen=True)
class Directions:
    """Directions of tokens for a page: int8 codes [R, T, K], each times the scale of its K."""

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float64]


@dataclass(frozen=True)
class EncoderView:
    """What an encoder's tokens look like.

    grid: g; share: of the variance, that the three components hold; colours: [R, g, g, 3];
    cell: row and column of the patch that all are compared with; cosines: [R, g, g].
    """

    name: str
    grid: int
    share: float
    colours: Pixels
    cell: int
    cosines: npt.NDArray[np.float32]
    directions: Directions

    def brightness(self, image: int) -> Pixels:
        """The similarities within an image, from its lowest to its highest, [g, g, 3]."""
        cosines = self.cosines[image]
        low, high = cosines.min(), cosines.max()
        shades = np.rint(255 * (cosines - low) / max(high - low, 1e-6)).astype(np.int64)
        pixels: Pixels = palette()[shades]
        return pixels


def view_encoders(tokens: Mapping[str, Tensor]) -> list[EncoderView]:
    """The views of all encoders. tokens: float32 [R, T, D] by encoder."""
    if not tokens:
        return []
    place = middle([isqrt(values.shape[1]) for values in tokens.values()])
    places = sum(values.shape[0] * values.shape[1] for values in tokens.values())
    dims = max(1, min(DIRECTION_DIMS, DIRECTION_BYTES // places))
    return [_view(name, values, place, dims) for name, values in tokens.items()]


def middle(grids: Sequence[int]) -> float:
    """Where the patch in the middle is, as a fraction: the centre of one of the finest grid."""
    return (max(grids) // 2 + 0.5) / max(grids)


def palette() -> Pixels:
    """The colours of brightness, [256, 3]."""
    colours: Pixels = np.rint(255 * mpl.colormaps[PALETTE](np.arange(256))[:, :3]).astype(np.uint8)
    return colours


def _view(name: str, tokens: Tensor, place: float, dims: int) -> EncoderView:
    grid = isqrt(tokens.shape[1])
    components, shares = principal_components(tokens, 3)
    colours = (255 * as_colours(components)).round().byte().unflatten(1, (grid, grid)).numpy()
    cell = int(place * grid)
    cosines = similarities(tokens, cell * grid + cell).unflatten(1, (grid, grid)).numpy()
    directions = _coded(embedded_directions(tokens, dims).numpy())
    return EncoderView(name, grid, float(shares.sum()), colours, cell, cosines, directions)


def _coded(directions: npt.NDArray[np.float64]) -> Directions:
    scales = np.maximum(np.abs(directions).max(axis=(0, 1)), 1e-12) / CODES
    return Directions(np.rint(directions / scales).astype(np.int8), scales)
