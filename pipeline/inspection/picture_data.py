"""What the pictures of a cache are drawn from: crops, decoded latents, tokens in colours.

R images that are shown, S their side in px, T tokens on a square grid, g its side, D features, K
dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isqrt

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.errors import RepaCacheError, RowsChangedError
from cache.layout import FEATURES, FLIPPED
from cache.metadata import check_fields, check_recipe
from cache.reader import PartialReader
from cache.rows import RowTable
from pipeline.inspection.contents import CachedColumn, Contents, encoder_of
from pipeline.inspection.shown_images import RowNumbers
from stages.analyze.tokens import (
    as_colours,
    embedded_directions,
    principal_components,
    psnr,
    relative_errors,
    similarities,
)
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import load_features_maker
from stages.encode.images.crop_batches import Crops
from stages.encode.images.crop_sources import open_crops, open_source
from stages.encode.images.index import is_in_place
from stages.encode.images.sources import Source, SourceError
from stages.encode.measuring.fidelity import encoded_again
from stages.encode.networks.autoencoder import Autoencoder
from stages.latents import main_array, scaling_of
from stages.placement import find_device

Pixels = npt.NDArray[np.uint8]

# Equal steps in brightness for equal steps in similarity, also for most who see colours otherwise.
PALETTE = "viridis"
# Dimensions of the directions that a page computes with, and what they may take of it in all.
DIRECTION_DIMS = 128
DIRECTION_BYTES = 2_500_000
CODES = 127
# Images whose tokens show how norms are distributed.
NORM_IMAGES = 256


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


@dataclass(frozen=True)
class Errors:
    """How far stored tokens are from fresh ones, relative to their norms, [R, T].

    stored: those of the cache; half: what float16 would have made of the same.
    """

    stored: Tensor
    half: Tensor


@dataclass(frozen=True)
class Decoded:
    """Latents as images again: uint8 [R, 3, S, S], and how near to the crops in dB, [R]."""

    images: Tensor
    psnr: Tensor | None


@dataclass
class PictureData:
    """What there is of the images that are shown.

    crops: uint8 [R, 3, S, S]; decoded: from the mean of their latents; tokens: float32
    [R, T, D] by encoder; norms: of the tokens of a sample of images, [images, T]; errors: of
    encoders that are stored with loss; nearby: crops of neighbours, uint8 [3, S, S], by row;
    notes: what could not be had, and why.
    """

    rows: RowNumbers
    crops: Tensor | None = None
    decoded: Decoded | None = None
    tokens: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Errors] = field(default_factory=dict)
    nearby: dict[int, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def without(self, what: str) -> Iterator[None]:
        """Go on without something, and note it, if it cannot be had."""
        try:
            yield
        except (RepaCacheError, OSError) as error:
            self.notes.append(f"without {what}: {error}")


def gather_picture_data(
    settings: EncodeSettings, contents: Contents, rows: RowNumbers, columns: Sequence[str]
) -> PictureData:
    """All that can be had of some rows. columns: those that have them all."""
    assert contents.rows is not None
    shown = [held for held in contents.columns if held.name in columns]
    found, device = PictureData(rows), find_device(settings.build.device)
    with found.without("crops"):
        found.crops = read_crops(settings, contents.rows, rows)
    for held in shown:
        if held.name == settings.latents.column and not settings.latents.is_pixels:
            with found.without("decoded latents"):
                found.decoded = _decode(settings, held, rows, found.crops, device)
        elif held.name.startswith(FEATURES) and not held.name.endswith(FLIPPED):
            with found.without(held.name):
                _read_tokens(settings, held, found, device)
    return found


def read_crops(settings: EncodeSettings, table: RowTable, rows: RowNumbers) -> Tensor:
    """The crops of some rows, uint8 [R, 3, S, S], from the cache or else from the data set.

    Raises SourceError, RowsChangedError or ImageError if neither has them.
    """
    with ThreadPoolExecutor(settings.reading_threads()) as pool:
        # No network waits for these: they stay in ordinary memory, on the CPU.
        stored = open_crops(settings, None, table, pool, torch.device("cpu"))
        crops = replace(stored, with_latents=False)
        wanted = rows.tolist()
        if crops.stored_rows(wanted) != frozenset(wanted):
            source = open_source(settings)
            if source is not None and not source.has_images:
                raise SourceError(f"{settings.dataset.path} has latents alone, and no images.")
            if source is not None:
                crops = replace(crops, source=source, rows=_placed(table, rows, source))
        return torch.cat([batch.images for batch in crops.batches(wanted)])


def _placed(table: RowTable, rows: RowNumbers, source: Source) -> RowTable:
    """The table with the places that some rows have in a data set that may have changed since."""
    places = {key: place for place, key in enumerate(source.keys)}
    source_index = table.source_index.copy()
    for row in rows.tolist():
        key = str(table.key[row])
        if is_in_place(table, row, source):
            continue
        if key not in places:
            raise RowsChangedError(f"{key} is not in the data set any more.")
        source_index[row] = places[key]
    return replace(table, source_index=source_index)


def _decode(
    settings: EncodeSettings,
    held: CachedColumn,
    rows: RowNumbers,
    crops: Tensor | None,
    device: torch.device,
) -> Decoded:
    """Decode the means of latents by the VAE that made them."""
    column, latents = held.column, settings.latents
    autoencoder = Autoencoder.of(latents, device)
    if not latents.imported:
        check_fields(column, autoencoder.recipe())
    stored = torch.from_numpy(PartialReader(column).values(main_array(column).name, rows))
    autoencoder.scaling = scaling = scaling_of(column, latents.scaling)
    scaled = scaling.sample(stored, torch.zeros(()))
    images = torch.cat([autoencoder.decode(one, "round") for one in scaled.split(1)])
    is_comparable = crops is not None and crops.shape == images.shape
    return Decoded(images, psnr(crops, images) if is_comparable and crops is not None else None)


def _read_tokens(
    settings: EncodeSettings, held: CachedColumn, found: PictureData, device: torch.device
) -> None:
    """Read an encoder's tokens, the norms of more of them, and errors if they have any."""
    encoder, reader = encoder_of(held.name), PartialReader(held.column)
    found.tokens[encoder] = torch.from_numpy(reader.values("tokens", found.rows))
    there = np.flatnonzero(held.there)
    sample = there[np.unique(np.linspace(0, len(there) - 1, NORM_IMAGES).astype(np.int64))]
    parts = np.array_split(sample, max(1, len(sample) // settings.build.images_at_once(device)))
    norms = [torch.from_numpy(reader.values("tokens", part)).norm(dim=-1) for part in parts]
    found.norms[encoder] = torch.cat(norms)
    storage = held.column.recipe["storage"]
    if storage == "float16" or encoder not in settings.encoders or found.crops is None:
        return
    with found.without(f"the errors of {storage} in {held.name}"):
        maker = load_features_maker(settings, encoder, device)
        check_recipe(held.column, maker.recipe)
        batches = map(Crops.of, found.crops.split(settings.build.images_at_once(device)))
        fresh = encoded_again(maker, batches, len(found.rows))
        found.errors[encoder] = Errors(
            stored=relative_errors(found.tokens[encoder], fresh),
            half=relative_errors(fresh.half().float(), fresh),
        )
