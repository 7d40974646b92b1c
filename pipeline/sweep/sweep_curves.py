"""Curves of a sweep: metrics and losses of each group over steps, images and hours."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from pipeline.pages.figures import COLOURS, inline_svg, styled
from pipeline.report.compared_runs import LOOKS
from pipeline.report.curves import SMALL, Panel, all_losses, new_panel, run_key, thinned
from pipeline.report.metrics import direction
from pipeline.report.records import RunRecord
from pipeline.sweep.summary import Group, RunSummary, Summary, hours_at

AXES = ("steps", "images", "hours")
# Of a line of its place, as SVG draws what matplotlib calls `LOOKS`.
DASHES = ("none", "7 3", "2 3", "7 2 2 2")


@dataclass(frozen=True)
class Value:
    """A point of a curve: mean, least and largest value over seeds, by axis where it lies."""

    at: Mapping[str, float]
    mean: float
    least: float
    most: float


def look_of(number: int) -> dict[str, Any]:
    """The look of a group's lines: a colour, and dashes where colours do not do."""
    style = LOOKS[number // len(COLOURS) % len(LOOKS)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": style, "gid": run_key(number)}


def dashes_of(number: int) -> str:
    """The dashes of a group, in SVG."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


def panels(summary: Summary) -> dict[str, list[Panel]]:
    """Panels for each axis: metrics that were measured more than once, then losses."""
    curves = {**dict(_metric_curves(summary)), **dict(_loss_curves(summary))}
    return {axis: [_draw(title, curve, axis) for title, curve in curves.items()] for axis in AXES}


Curves = dict[int, list[Value]]


def _metric_curves(summary: Summary) -> Iterator[tuple[str, Curves]]:
    for metric in summary.metrics:
        curves = {n: _values(group, metric) for n, group in enumerate(summary.groups)}
        if any(len(values) > 1 for values in curves.values()):
            yield f"{metric} {direction(metric)}", curves


def _values(group: Group, metric: str) -> list[Value]:
    found = []
    for step in group.steps:
        points = [point for point in group.points(step) if metric in point.results]
        values = [point.results[metric].value for point in points]
        if values:
            hours = mean(point.hours for point in points)
            at = {"steps": step, "images": points[0].images, "hours": hours}
            found.append(Value(at, mean(values), min(values), max(values)))
    return found


def _loss_curves(summary: Summary) -> Iterator[tuple[str, Curves]]:
    records = [run.record for run in summary.runs if run.record is not None]
    for name in all_losses(records):
        curves = {n: _losses(group.runs, name) for n, group in enumerate(summary.groups)}
        yield f"loss: {name}", {n: values for n, values in curves.items() if values}


def _losses(runs: Sequence[RunSummary], name: str) -> list[Value]:
    """The moving averages of a loss, at steps that were logged."""
    found: dict[float, list[float]] = {}
    for record in (run.record for run in runs if run.record is not None):
        curve = record.curve(name)
        steps, values = thinned(curve.steps, curve.smoothed)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            found.setdefault(step, []).append(value)
    first = next((run.record for run in runs if run.record is not None), None)
    if first is None:
        return []
    return [
        Value(_places(first, step), mean(found[step]), min(found[step]), max(found[step]))
        for step in sorted(found)
    ]


def _places(record: RunRecord, step: float) -> dict[str, float]:
    images = step * record.settings.get("batch_size", 0)
    return {"steps": step, "images": images, "hours": hours_at(record, step)}


def _draw(title: str, curves: Curves, axis: str) -> Panel:
    with styled():
        figure, axes = new_panel(SMALL)
        for number, values in curves.items():
            look, places = look_of(number), [value.at[axis] for value in values]
            marks: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(values) <= 12 else {}
            axes.plot(places, [value.mean for value in values], **look, **marks)
            if any(value.most > value.least for value in values):
                axes.fill_between(
                    places,
                    [value.least for value in values],
                    [value.most for value in values],
                    color=look["color"],
                    alpha=0.15,
                    linewidth=0,
                    gid=look["gid"],
                )
        _set_axis(axes, axis)
        return Panel(title, "", inline_svg(figure))


def _set_axis(axes: Axes, axis: str) -> None:
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if axis != "hours":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
