"""What of a sweep does not fit together, though each of its runs would do by itself."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.setting_types import nearest

if TYPE_CHECKING:
    from pipeline.sweep.sweep_file import Sweep

# Of samples: what all have to have in common to show the same noises and labels.
SAME = ("seed", "labels", "images")
# Sections that all runs share.
SHARED = ("dataset", "cache", "latents", "build", "evaluate")


def contradictions(sweep: "Sweep") -> Iterator[str]:
    """A line for each setting that does not fit others."""
    yield from _shared(sweep)
    yield from _repeated(sweep)
    yield from _steps(sweep)
    yield from _early_stop(sweep)
    if sweep.settings.judge.validation and "losses" not in sweep.settings.judge.analyses:
        yield 'judge.validation: its losses are measured only if judge.analyses has "losses"'


def _shared(sweep: "Sweep") -> Iterator[str]:
    first, *others = (run.config for run in sweep.runs)
    for section in SHARED:
        if any(getattr(one, section) != getattr(first, section) for one in others):
            yield f"{section}: runs differ in it, but share one cache and are judged alike"
    for key in SAME:
        if any(getattr(one.sample, key) != getattr(first.sample, key) for one in others):
            yield f"sample.{key}: samples are compared by the same noises and labels"


def _repeated(sweep: "Sweep") -> Iterator[str]:
    """Runs that would be the same."""
    known: dict[str, str] = {}
    for run in sweep.runs:
        content = run.config.train.model_dump_json(exclude={"run"})
        content += run.config.sample.model_dump_json()
        if (other := known.setdefault(content, run.name)) != run.name:
            yield f"{other} and {run.name} have the same settings"


def _steps(sweep: "Sweep") -> Iterator[str]:
    most = max(run.config.train.steps for run in sweep.runs)
    early = sweep.settings.early_stop
    for where, steps in (("judge", sweep.settings.judge.steps), ("early_stop", early.steps)):
        if late := [step for step in steps if step > most]:
            listed = ", ".join(f"{step:,}" for step in late)
            yield f"{where}.steps: {listed}, but the longest run has {most:,} (train.steps)"


def _early_stop(sweep: "Sweep") -> Iterator[str]:
    early = sweep.settings.early_stop
    if not early.enabled:
        return
    least = min(run.config.train.steps for run in sweep.runs)
    if not any(step < least for step in sweep.rungs):
        yield (
            f"early_stop.steps: none comes before the last step ({least:,}), at which the worse "
            "runs could end"
        )
    if not sweep.metrics:
        yield "early_stop.metric: nothing is measured; set judge.metrics or judge.frechet_encoders"
    elif early.metric is not None and early.metric not in sweep.metrics:
        hint = nearest(early.metric, sweep.metrics)
        yield f"early_stop.metric: {early.metric!r} is not measured; {hint}"
