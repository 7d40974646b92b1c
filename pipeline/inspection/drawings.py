"""Figures and contact sheets of a cache.

R images that are shown, S their side in px, T tokens, g side of a token grid.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cache.rows import RowTable
from pipeline.inspection.picture_data import EncoderView, Errors, PictureData, Pixels
from pipeline.pages.figures import COLOURS, new_figure

WIDTH, HEIGHT = 4.6, 2.7
BINS = 60
# Classes that fit into a figure with their names.
NAMED_CLASSES = 16
# Of the overview: images beside one another, and the side of each in inches.
OVERVIEW_IMAGES = 8
OVERVIEW_SIDE = 1.0


@dataclass(frozen=True)
class Sheet:
    """A kind of picture of all images that are shown.

    title: for people; name: for files; pictures: uint8 [R, side, side, 3]; cell: row and column
    of the patch that is marked, if one is.
    """

    title: str
    name: str
    pictures: Pixels
    cell: int | None = None


def sheets(data: PictureData, views: Sequence[EncoderView]) -> list[Sheet]:
    """All kinds of pictures that there are, in the order in which one looks at them."""
    found = []
    if data.crops is not None:
        found.append(Sheet("crops", "crops", as_pixels(data.crops)))
    if data.decoded is not None:
        found.append(Sheet("decoded latents", "decoded", as_pixels(data.decoded.images)))
    for view in views:
        found.append(Sheet(f"{view.name}\ncomponents", f"components-{view.name}", view.colours))
        bright = np.stack([view.brightness(image) for image in range(len(view.cosines))])
        name = f"similarity-{view.name}"
        found.append(Sheet(f"{view.name}\nsimilarity", name, bright, view.cell))
    return found


def as_pixels(images: Tensor) -> Pixels:
    """Images [R, 3, S, S] as [R, S, S, 3]."""
    return images.permute(0, 2, 3, 1).numpy()


def draw_overview(found: Sequence[Sheet]) -> Figure:
    """One picture of everything: an image per column, a kind of picture per row."""
    columns = min(len(found[0].pictures), OVERVIEW_IMAGES)
    figure = new_figure(OVERVIEW_SIDE * (columns + 1.15), OVERVIEW_SIDE * len(found))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    grid = figure.subplots(len(found), columns, squeeze=False)
    for sheet, places in zip(found, grid, strict=True):
        for picture, axes in zip(sheet.pictures, places, strict=False):
            _show(axes, picture, sheet.cell)
        places[0].set_ylabel(
            sheet.title, rotation=0, ha="right", va="center", labelpad=6, fontsize=9
        )
    return figure


def _show(axes: Axes, picture: Pixels, cell: int | None) -> None:
    axes.imshow(picture, interpolation="nearest" if len(picture) <= 128 else "antialiased")
    axes.grid(visible=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if cell is not None:
        edges = np.array([cell - 0.5, cell + 0.5])
        across, down = edges[[0, 1, 1, 0, 0]], edges[[0, 0, 1, 1, 0]]
        axes.plot(across, down, color="white", linewidth=1.2)


def draw_norms(name: str, norms: Tensor) -> Figure:
    """How long the tokens of an encoder are. norms: [images, T]."""
    values = norms.flatten().numpy()
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    axes.hist(values, BINS, color=COLOURS[0], log=True)
    middle = float(np.median(values))
    axes.axvline(middle, color=COLOURS[1])
    largest = values.max() / max(middle, 1e-12)
    axes.set(title=f"{name}: median {middle:.3g}, largest {largest:.2g} x median")
    axes.set(xlabel="norm of a token", ylabel="tokens")
    return figure


def draw_errors(name: str, storage: str, errors: Errors) -> Figure:
    """How far stored tokens are from fresh ones."""
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    kinds: Mapping[str, npt.NDArray[np.float32]] = {
        f"{storage}, as stored": errors.stored.flatten().numpy(),
        "float16, for comparison": errors.half.flatten().numpy(),
    }
    smallest = min(values.min() for values in kinds.values())
    largest = max(values.max() for values in kinds.values())
    bins = np.geomspace(max(smallest, 1e-6), max(largest, 2e-6), BINS)
    for label, values in kinds.items():
        axes.hist(
            values, bins.tolist(), label=f"{label}: median {np.median(values):.1e}", alpha=0.8
        )
    axes.set(title=name, xscale="log", xlabel="error of a token / its norm", ylabel="tokens")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=8)
    return figure


def draw_classes(table: RowTable) -> Figure:
    """How many images each class has."""
    counts = np.bincount(table.label, minlength=len(table.classes))
    order = np.argsort(-counts, kind="stable")
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    middle = f"images (median {np.median(counts):,.0f})"
    if len(counts) <= NAMED_CLASSES:
        axes.barh([table.classes[label] for label in order], counts[order], color=COLOURS[0])
        axes.grid(visible=False, axis="y")
        # The largest on top; one class alone is not to fill the figure.
        axes.set(xlabel=middle, ylim=(max(len(counts), 4) - 0.5, -0.5))
    else:
        axes.stairs(counts[order], np.arange(len(counts) + 1), fill=True, color=COLOURS[0])
        axes.set(xlabel="classes, the largest first", ylabel=middle, xlim=(0, len(counts)))
    classes = "1 class" if len(counts) == 1 else f"{len(counts):,} classes"
    sizes = dict.fromkeys((f"{counts.min():,}", f"{counts.max():,}"))
    axes.set_title(f"{classes} of {' to '.join(sizes)} images")
    return figure


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its file, and what it shows."""

    name: str
    caption: str
    figure: Figure


def drawings(data: PictureData, table: RowTable, storages: Mapping[str, str]) -> Iterator[Drawing]:
    """All distributions. storages: how tokens are stored, by encoder."""
    for name, norms in data.norms.items():
        caption = (
            f"Norms of {norms.numel():,} tokens of {len(norms):,} images, counted on a "
            "logarithmic scale. A second hump far to the right would be a few tokens in which the "
            "encoder keeps something else than their patch."
        )
        yield Drawing(f"norms-{name}", caption, draw_norms(name, norms))
    for name, errors in data.errors.items():
        caption = (
            f"How far {errors.stored.numel():,} {storages[name]} tokens are from those that the "
            "encoder gives for the same crops. An error of 0.02 is an angle of one degree: the "
            "hump should be narrow, and left of that."
        )
        yield Drawing(f"errors-{name}", caption, draw_errors(name, storages[name], errors))
    caption = "Images of each class. Training draws rows, and with them classes, as often as here."
    yield Drawing("classes", caption, draw_classes(table))
