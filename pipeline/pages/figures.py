"""Figures by matplotlib: as SVG that takes a page's font and colour, and as PNG for elsewhere."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure

from cache.files import atomic_file

# Told apart on white and on black, also by most who do not see all colours.
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#eab308", "#ec4899", "#06b6d4", "#94a3b8")

# Of text, axes and ticks on white paper; a page puts the colour of its text in its place.
INK = "#1f2937"
DPI = 150

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    # Text stays text, and the same figure gives the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "repa-cache",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made and saved within the block look alike."""
    with mpl.rc_context(STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, to be made and saved within `styled`."""
    return Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: Figure) -> Markup:
    """A figure for a page, as wide as its place at most and in the colour of the text."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # A page has many figures: of their groups, those named by a `gid` are found by their class.
    svg = re.sub(r'<g id="\w+_\d+">', "<g>", svg).replace("<g id=", "<g class=")
    # HTML knows these namespaces by itself; the font is the page's.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|font-family: [^;]*; ', "", svg)
    return Markup(svg)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as a picture on white."""
    with atomic_file(path) as stream:
        figure.savefig(stream, format="png", dpi=DPI, facecolor="white")
