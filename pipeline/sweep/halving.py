"""Successive halving (Jamieson and Talwalkar, 2016): at some steps, the worse runs end."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import mean

from pipeline.report.metrics import is_higher_better
from pipeline.report.records import read_run
from pipeline.sweep.states import trained_step
from pipeline.sweep.sweep_file import Sweep, SweepRun
from stages.evaluate.results import Result


def results_at(run: SweepRun, step: int) -> dict[str, Result]:
    """What was measured of a run's samples at a step, by metric; the last of each."""
    if not run.folder.is_dir() or not trained_step(run.folder):
        return {}
    images = run.config.sample.images
    return {
        result.metric: result
        for sample in read_run(run.folder).samples
        if sample.step == step and sample.is_of_average
        for result in sample.results
        if result.images == images
    }


def end_early(sweep: Sweep, runs: Sequence[SweepRun], step: int) -> list[SweepRun]:
    """Those of some runs that end at a step.

    Runs that differ in their seed alone are judged together. Who has gone on before stays, and
    so does who has no value: a run that failed may be taken up again.
    """
    metric = sweep.settings.early_stop.metric or sweep.metrics[0]
    values: dict[str, list[float]] = {}
    for run in runs:
        if (result := results_at(run, step).get(metric)) is not None:
            values.setdefault(run.group, []).append(result.value)
    scores = {group: mean(of_group) for group, of_group in values.items()}
    ending = worse_ones(scores, sweep.settings.early_stop.keep, metric)
    return [run for run in runs if run.group in ending and trained_step(run.folder) <= step]


def worse_ones(scores: Mapping[str, float], keep: float, metric: str) -> Collection[str]:
    """The groups that do not belong to the best part, which is rounded up."""
    sign = -1 if is_higher_better(metric) else 1
    ranked = sorted(scores, key=lambda group: (sign * _number(scores[group], sign), group))
    return frozenset(ranked[math.ceil(keep * len(ranked)) :])


def _number(value: float, sign: int) -> float:
    """A value by which can be sorted: what is not a number is the worst."""
    return value if math.isfinite(value) else sign * math.inf


def halvings(sweep: Sweep) -> Iterator[tuple[int | None, list[SweepRun]]]:
    """Steps up to which runs go on, with these runs; None is their last step.

    Each is to be asked for when the runs have come to the one before.
    """
    runs = list(sweep.runs)
    for rung in sweep.rungs:
        yield rung, runs
        ending = end_early(sweep, runs, rung)
        runs = [run for run in runs if run not in ending]
    yield None, runs
