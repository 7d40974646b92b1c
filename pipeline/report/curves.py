"""Curves of runs: a panel for each value that is logged, and one picture of a run's losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator

from pipeline.pages.figures import COLOURS, inline_svg, new_figure, save_png, styled
from pipeline.report.records import Curve, RunRecord

# From little noise to much: an order that is seen, on white and on black.
LEVEL_COLOURS = ("#3b82f6", "#8b5cf6", "#e0457b", "#f59e0b")
# In inches: as wide as its place on the page, so that text is neither small nor large there.
SMALL, LARGE = (3.1, 2.1), (4.4, 2.5)
# Left, right, bottom and top of its axes, in inches: the axes of all panels are in line.
MARGINS = (0.52, 0.16, 0.3, 0.1)
# A panel is 300 to 400 pixels wide: no more than two points for every second of them are seen.
POINTS = 400
# Values beyond these quantiles do not widen an axis: one spike would flatten all the rest.
OUTERMOST = 0.01
# From this ratio of the largest to the smallest value on, an axis is logarithmic.
DECADE = 10


@dataclass(frozen=True)
class Line:
    """A curve of a panel.

    key: by which a page finds it, such as `run-0`; last: the step to which the axis goes.
    """

    curve: Curve
    colour: str
    key: str
    last: int


@dataclass(frozen=True)
class Panel:
    """A figure and what is said of it."""

    title: str
    caption: str
    picture: Markup


def loss_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Panels of each loss: of several runs over all noise, of one run by level of noise too."""
    names = all_losses(records)
    if len(records) > 1:
        return [draw_panel(name, _lines(records, name), size=LARGE) for name in names]
    levels = all_levels(records)
    pairs = ((draw_panel(n, _lines(records, n)), _by_level(records[0], n, levels)) for n in names)
    return [panel for pair in pairs for panel in pair]


def level_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """A panel for each loss of several runs at each level of noise."""
    if len(records) == 1:
        return []
    return [
        draw_panel(f"{name}, noise {level}", _lines(records, f"{name}@{level}"))
        for name in all_losses(records)
        for level in all_levels(records)
    ]


def _by_level(record: RunRecord, name: str, levels: Sequence[str]) -> Panel:
    lines = [
        Line(record.curve(f"{name}@{level}"), level_colour(level), f"level-{number}", record.step)
        for number, level in enumerate(levels)
    ]
    return draw_panel(f"{name} by level of noise", lines)


def machine_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Panels of what is logged beside the losses."""
    return [
        draw_panel("gradient norm", _lines(records, "gradient_norm"), "before clipping"),
        draw_panel("images/s", _lines(records, "images_per_second"), bounds=(0, None)),
        draw_panel(
            "data wait", _lines(records, "data_wait"), "share of the time", bounds=(-0.02, 1)
        ),
        draw_panel("memory", _lines(records, "memory_gb"), "GB, the most so far", bounds=(0, None)),
    ]


def all_losses(records: Sequence[RunRecord]) -> list[str]:
    """The names of the losses of any run, denoising first."""
    return list(dict.fromkeys(name for record in records for name in record.losses))


def all_levels(records: Sequence[RunRecord]) -> list[str]:
    """The levels of noise of any run, such as `0.25-0.50`, from the least noise on."""
    names = {name for record in records for line in record.log for name in line}
    return sorted({name.partition("@")[2] for name in names if "@" in name})


def level_colour(level: str) -> str:
    """The colour of a level of noise, by where it begins between 0 and 1."""
    return LEVEL_COLOURS[int(float(level.partition("-")[0]) * len(LEVEL_COLOURS))]


def run_key(number: int) -> str:
    """By which a page finds the lines of a run."""
    return f"run-{number}"


def _lines(records: Sequence[RunRecord], name: str) -> list[Line]:
    last = max(record.step for record in records)
    return [
        Line(record.curve(name), COLOURS[number], run_key(number), last)
        for number, record in enumerate(records)
    ]


def draw_panel(
    title: str,
    lines: Sequence[Line],
    caption: str = "",
    *,
    size: tuple[float, float] = SMALL,
    bounds: tuple[float, float | None] | None = None,
) -> Panel:
    """Draw curves into one panel. bounds: of its axis, by default such that their course shows."""
    with styled():
        figure, axes = new_panel(size)
        draw_lines(axes, lines)
        if bounds is None:
            fit_axis(axes, [line.curve for line in lines])
        else:
            highest = max((max(one.curve.values, default=0) for one in lines), default=0)
            axes.set_ylim(bounds[0], bounds[1] or 1.1 * highest or 1)
        remarks = [caption, "logarithmic" if axes.get_yscale() == "log" else ""]
        return Panel(title, "; ".join(filter(None, remarks)), inline_svg(figure))


def new_panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, to be made within `styled`, and its axes."""
    figure, (width, height) = new_figure(*size), size
    # Margins that are known save half of the time that a panel takes.
    figure.set_layout_engine("none")
    left, right, bottom, top = MARGINS
    inner = 1 - (left + right) / width, 1 - (bottom + top) / height
    return figure, figure.add_axes((left / width, bottom / height, *inner))


def draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw what was logged, faintly, and its moving average."""
    for line in lines:
        steps = line.curve.steps
        look: dict[str, Any] = {"color": line.colour, "gid": line.key}
        axes.plot(*thinned(steps, line.curve.values), alpha=0.3, linewidth=0.8, **look)
        # Above what was logged of all lines.
        axes.plot(*thinned(steps, line.curve.smoothed), zorder=3, **look)
    set_step_axis(axes, max(line.last for line in lines))


def set_step_axis(axes: Axes, last: int) -> None:
    """Have a horizontal axis of steps up to the last."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(-0.02 * last, 1.02 * last)


def fit_axis(axes: Axes, curves: Sequence[Curve]) -> None:
    """Have a vertical axis on which the course of curves is seen, logarithmic if it has to be."""
    curves = [curve for curve in curves if curve.steps]
    if not curves:
        return
    values = np.concatenate([curve.values for curve in curves])
    ends = [curve.smoothed[-1] for curve in curves]
    low, high = np.quantile(values, [OUTERMOST, 1 - OUTERMOST]).tolist()
    low, high = min(low, *ends), max(high, *ends)
    if 0 < low * DECADE < high:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.minorticks_off()
    else:
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points of a curve that look like all: the extremes of every stretch."""
    x, y = np.array(steps), np.array(values)
    if len(x) <= POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), POINTS // 2 - 1)
    extremes = {int(part[pick(y[part])]) for part in parts for pick in (np.argmin, np.argmax)}
    kept = sorted(extremes | {0, len(x) - 1})
    return x[kept], y[kept]


def save_curves(record: RunRecord, path: Path) -> None:
    """Draw each loss of a run by step as one PNG."""
    names = record.losses
    with styled():
        figure = new_figure(4.5 * len(names), 3)
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            line = Line(record.curve(name), COLOURS[0], run_key(0), record.step)
            draw_lines(axes, [line])
            fit_axis(axes, [line.curve])
            axes.set_title(name)
            axes.set_xlabel("step")
        save_png(figure, path)
