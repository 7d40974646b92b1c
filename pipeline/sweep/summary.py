"""What came of a sweep: values of every run at the steps where it was judged, means over seeds."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cache.files import write_atomically
from pipeline.report.metrics import is_higher_better
from pipeline.report.reading import Read, read_by
from pipeline.report.records import RunRecord, is_run, read_run
from pipeline.sweep.analysed import analysed_at
from pipeline.sweep.halving import results_at
from pipeline.sweep.states import lacking_steps, trained_step
from pipeline.sweep.sweep_file import Sweep, SweepRun
from pipeline.sweep.variations import Dotted, dotted, group_of, in_words
from stages.evaluate.results import Result
from stages.weights.run_folder import samples_path, step_name

HOUR = 3600


@dataclass(frozen=True)
class Point:
    """A run at a step where it was judged. hours: of training up to there."""

    step: int
    images: int
    hours: float
    results: Mapping[str, Result]
    grid: Path | None


@dataclass(frozen=True)
class RunSummary:
    """What came of a run.

    state: in words; record: None before it began; read: what it read of the cache.
    """

    run: SweepRun
    state: str
    record: RunRecord | None
    points: tuple[Point, ...]
    read: Read

    @property
    def step(self) -> int:
        """The last step of which something is known."""
        return self.record.step if self.record else 0

    def at(self, step: int) -> Point | None:
        """It at a step, if it was judged there."""
        return next((point for point in self.points if point.step == step), None)


@dataclass(frozen=True)
class Spread:
    """Values over seeds. deviation: of the sample, None of a single value."""

    mean: float
    deviation: float | None
    count: int

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.mean:.4g}" + (f" ± {self.deviation:.2g}" if self.deviation else "")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone. settings: that they have in common."""

    name: str
    settings: Dotted
    runs: tuple[RunSummary, ...]

    @property
    def steps(self) -> list[int]:
        """Steps at which any of them was judged."""
        return sorted({point.step for run in self.runs for point in run.points})

    def points(self, step: int) -> list[Point]:
        """Those of them that were judged at a step, at that step."""
        return [point for run in self.runs if (point := run.at(step)) is not None]

    def spread(self, metric: str, step: int) -> Spread | None:
        """Of a metric at a step."""
        points = self.points(step)
        return spread(p.results[metric].value for p in points if metric in p.results)

    @property
    def hours(self) -> Spread | None:
        """Of training."""
        return spread(run.record.seconds / HOUR for run in self.runs if run.record)

    @property
    def images_per_second(self) -> Spread | None:
        """Of training, the medians of what was logged."""
        found = (run.record.curve("images_per_second").median for run in self.runs if run.record)
        return spread(speed for speed in found if speed is not None)

    @property
    def state(self) -> str:
        """Of all of them, in words."""
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        if len(counts) == 1:
            return next(iter(counts))
        return ", ".join(f"{count} {state}" for state, count in counts.items())


def spread(values: Iterable[float]) -> Spread | None:
    """The mean of some values and how they scatter, None without any."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None, len(known))


@dataclass(frozen=True)
class Summary:
    """A whole sweep. groups: in the order of the file."""

    sweep: Sweep
    groups: tuple[Group, ...]

    @property
    def runs(self) -> list[RunSummary]:
        """All runs."""
        return [run for group in self.groups for run in group.runs]

    @property
    def metrics(self) -> list[str]:
        """The metrics that any run has."""
        found = (name for run in self.runs for point in run.points for name in point.results)
        return list(dict.fromkeys(found))

    @cached_property
    def varied(self) -> list[str]:
        """The settings that are not the same in all groups."""
        names = dict.fromkeys(name for group in self.groups for name in group.settings)
        values = {name: {self.setting(group, name) for group in self.groups} for name in names}
        return [name for name in names if len(values[name]) > 1]

    @cached_property
    def gridded(self) -> list[str]:
        """Those of them that the grid varies."""
        grid = dotted(self.sweep.settings.grid)
        return [name for name in self.varied if name in grid]

    def own(self, group: Group) -> list[str]:
        """What a group's variation sets that is not the same in all groups, a line each."""
        names = [name for name in self.varied if name not in self.gridded]
        return [f"{name} = {self.setting(group, name)}" for name in names if name in group.settings]

    def setting(self, group: Group, name: str) -> str:
        """A setting of a group in words, "" where it is the base's."""
        return in_words(group.settings[name]) if name in group.settings else ""

    def best(self, metric: str) -> str | None:
        """The name of the group with the best mean at the last step that all of them have."""
        common = set.intersection(*(set(group.steps) for group in self.groups))
        if not common:
            return None
        found = {group.name: group.spread(metric, max(common)) for group in self.groups}
        means = {name: one.mean for name, one in found.items() if one is not None}
        choose = max if is_higher_better(metric) else min
        return choose(means, key=means.__getitem__) if len(means) > 1 else None


def summarise(
    sweep: Sweep, failed: Iterable[str] = (), ended_early: Mapping[str, int] | None = None
) -> Summary:
    """Read what there is of all runs.

    failed: names of those that kept failing; ended_early: the steps of those that did, by name.
    """
    failed, ended_early = set(failed), ended_early or {}
    groups: dict[str, list[RunSummary]] = {}
    for run in sweep.runs:
        state = "failed" if run.name in failed else _state(sweep, run, ended_early.get(run.name))
        groups.setdefault(run.group, []).append(_summary(sweep, run, state))
    return Summary(
        sweep,
        tuple(
            Group(name, group_of(runs[0].run.settings), tuple(runs))
            for name, runs in groups.items()
        ),
    )


def _state(sweep: Sweep, run: SweepRun, ended: int | None) -> str:
    if ended is not None:
        return f"ended early, at step {ended:,}"
    step = trained_step(run.folder)
    if not step:
        return "not begun"
    is_judged = not lacking_steps(run, sweep.judged_steps(run))
    if step >= run.config.train.steps and is_judged:
        return "done"
    return f"at step {step:,} of {run.config.train.steps:,}"


def _summary(sweep: Sweep, run: SweepRun, state: str) -> RunSummary:
    record = read_run(run.folder, run.name) if is_run(run.folder) else None
    points = []
    for step in sweep.judged_steps(run) if record else ():
        results, grid = results_at(run, step) | analysed_at(run, step), _grid(run, step)
        if record and (results or grid):
            images = step * run.config.train.batch_size
            points.append(Point(step, images, hours_at(record, step), results, grid))
    step = record.step if record else 0
    return RunSummary(run, state, record, tuple(points), read_by(run.config, step))


def _grid(run: SweepRun, step: int) -> Path | None:
    path = samples_path(run.folder, step_name(step)).with_suffix(".png")
    return path if path.is_file() else None


def hours_at(record: RunRecord, step: float) -> float:
    """How long training took up to a step, by its log."""
    seconds, before = 0.0, 0.0
    curve = record.curve("steps_per_second")
    for at, speed in zip(curve.steps, curve.values, strict=True):
        seconds += max(min(at, step) - before, 0) / speed
        before = at
    if before < step and curve.values:
        seconds += (step - before) / curve.values[-1]
    return seconds / HOUR


def write_csv(summary: Summary, path: Path) -> None:
    """Write a line for each run and step where it was judged."""
    stream = io.StringIO()
    metrics, varied = summary.metrics, summary.varied
    head = ["run", "group", "seed", "state", "step", "images", "hours"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, *varied, *metrics, "read_bytes", "encoder_hours_saved"])
    for group in summary.groups:
        for one in group.runs:
            settings = [summary.setting(group, name) for name in varied]
            read = [one.read.bytes, _number(one.read.saved_seconds / HOUR)]
            about = [one.run.name, group.name, one.run.seed, one.state]
            for point in one.points or [None]:
                at = _place(point) if point else [one.step, "", ""]
                values = [_value(point, metric) for metric in metrics]
                writer.writerow([*about, *at, *settings, *values, *read])
    write_atomically(path, stream.getvalue().encode())


def _place(point: Point) -> list[Any]:
    return [point.step, point.images, _number(point.hours)]


def _value(point: Point | None, metric: str) -> Any:
    return point.results[metric].value if point and metric in point.results else ""


def _number(value: float) -> str:
    return f"{value:.6g}"


def csv_path(sweep: Sweep) -> Path:
    """The table beside the page."""
    return sweep.folder / "sweep.csv"
