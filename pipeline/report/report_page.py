"""The page of one run, or of several side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.pages import write_page
from pipeline.pages.figures import COLOURS
from pipeline.report import compared_runs, curves
from pipeline.report.grid_pictures import Frame, other_frames, strips
from pipeline.report.metrics import direction
from pipeline.report.records import ReportError, RunRecord, read_run
from stages.train.terms import TERMS
from stages.train.terms.joint import Joint

LACKING = "\N{EN DASH}"
# Runs that their colours tell apart.
MOST_RUNS = len(COLOURS)


@dataclass(frozen=True)
class Fact:
    """A value for people, and what is to be said of it."""

    value: str
    note: str = ""


def about(record: RunRecord) -> str:
    """What was trained, on what, and when."""
    settings = record.settings
    parts = [str(settings.get("model", "a model that is not known yet"))]
    if record.parameters is not None:
        parts.append(f"{record.parameters / 1e6:,.1f} M parameters")
    if resolution := record.config.get("dataset", {}).get("resolution"):
        parts.append(f"{resolution} px")
    parts.append(_alignment(record))
    parts += record.state.get("notes", [])
    if record.written is not None:
        parts.append(f"log of {record.written:%Y-%m-%d %H:%M} UTC")
    return ", ".join(parts)


def _alignment(record: RunRecord) -> str:
    terms = record.settings.get("align", ())
    return "; ".join(map(_term, terms)) if terms else "aligned with no encoder"


def _term(term: Mapping[str, Any]) -> str:
    """An entry of `[[train.align]]`: of what kind, with what, where, how much and how long."""
    parts = [term["kind"]]
    if "encoder" in term:
        parts = [_with_encoder(term["kind"], term["encoder"])]
    if "depth" in term:
        parts[0] += f" at block {term['depth']}"
    parts.append(f"weight {term['weight']:.4g}")
    if term["until"] is not None:
        fade = f", fading over {term['fade']:,}" if term.get("fade") else ""
        parts.append(f"until step {term['until']:,}{fade}")
    return ", ".join(parts)


def _with_encoder(kind: str, encoder: str) -> str:
    term = TERMS.get(kind)
    if term is not None and issubclass(term, Joint):
        return f"{term.stream.replace('_', ' ')} of {encoder} diffused along"
    return f"aligned with {encoder} ({kind})"


def facts_of(record: RunRecord) -> dict[str, Fact]:
    """What a run has come to, by name."""
    facts = {"steps": _steps(record), "images seen": _images(record), "time": _time(record)}
    if (speed := record.curve("images_per_second").median) is not None:
        facts["images/s"] = Fact(f"{speed:,.4g}", "median")
    if (wait := record.curve("data_wait").median) is not None:
        facts["data wait"] = Fact(f"{wait:.1%}", "of the time, median")
    if memory := record.curve("memory_gb").values:
        facts["memory"] = Fact(f"{max(memory):,.2f} GB", "at most")
    for name in record.losses:
        if smoothed := record.curve(name).smoothed:
            facts[name] = Fact(f"{smoothed[-1]:.4g}", f"after {smoothed[0]:.4g}")
    if record.skipped:
        facts["steps left out"] = Fact(f"{record.skipped:,}", "loss or gradient not finite")
    return facts


def _steps(record: RunRecord) -> Fact:
    if (total := record.settings.get("steps")) is None:
        return Fact(f"{record.step:,}")
    return Fact(f"{record.step:,}", "all" if record.step >= total else f"of {total:,}")


def _images(record: RunRecord) -> Fact:
    epochs = "" if record.epochs is None else f"{record.epochs:,.4g} epochs"
    return Fact(f"{record.images:,}", epochs)


def _time(record: RunRecord) -> Fact:
    """How long it took; as every line tells the speed of its steps, pauses do not count."""
    speed, total = record.steps_per_second, record.settings.get("steps", 0)
    if speed is None:
        return Fact(LACKING)
    left = (total - record.step) / speed
    return Fact(_duration(record.seconds), f"{_duration(left)} left" if left > 0 else "training")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def page_path(run: Path) -> Path:
    """The page of a run in its folder."""
    return run / "report.html"


def curves_path(run: Path) -> Path:
    """The picture of the losses of a run in its folder."""
    return run / "curves.png"


def write_own_report(run: Path) -> None:
    """Write page and curves into the folder of a run."""
    record = read_run(run)
    if record.losses:
        curves.save_curves(record, curves_path(run))
    write_page_of([record], page_path(run))


def write_report(runs: Sequence[Path], out: Path | None) -> tuple[Path, int]:
    """Write the page of runs; returns where it is, and of how many runs.

    out: by default in the folder of a single run, or here. Raises ReportError if a folder is no
    run, or if there are more than colours tell apart.
    """
    records = read_runs(runs)
    path = out or (page_path(records[0].folder) if len(records) == 1 else Path("report.html"))
    write_page_of(records, path)
    return path, len(records)


def read_runs(runs: Sequence[Path]) -> list[RunRecord]:
    """Read runs, each once, by the names of their folders or as much of the paths as it takes."""
    folders = {run.resolve(): run for run in runs}
    if len(folders) > MOST_RUNS:
        raise ReportError(
            f"{len(folders)} runs: expected at most {MOST_RUNS}, which colours tell apart."
        )
    names = [folder.name for folder in folders]
    is_clear = len(set(names)) == len(names)
    return [read_run(run, folder.name if is_clear else str(run)) for folder, run in folders.items()]


def write_page_of(records: Sequence[RunRecord], path: Path) -> None:
    """Write the page of what was read."""
    judged, groups = compared_runs.judged_samples(records)
    pictures = zip(records, strips(records), other_frames(records), strict=True)
    runs = [_run(*numbered) for numbered in enumerate(pictures)]
    frames = [frame for run in runs for frame in run["frames"]]
    write_page(
        path,
        "report.html",
        title=" \N{MIDDLE DOT} ".join(record.name for record in records),
        runs=runs,
        fact_names=list(dict.fromkeys(name for run in runs for name in run["facts"])),
        differences={
            name: [_in_words(value) for value in values]
            for name, values in compared_runs.different_settings(records).items()
        },
        against=compared_runs.reasons_against_comparing(records),
        loss_panels=curves.loss_panels(records),
        levels={level: curves.level_colour(level) for level in curves.all_levels(records)},
        level_panels=curves.level_panels(records),
        machine_panels=curves.machine_panels(records)
        if any(record.log for record in records)
        else [],
        frames=len(frames),
        others=any(run["others"] for run in runs),
        are_exact=all(frame.picture.is_exact for frame in frames),
        judged=judged,
        groups=groups,
        has_floors=any(r.floor is not None for one in judged for r in one.results.values()),
        metrics={metric: direction(metric) for metric in compared_runs.metric_names(judged)},
        metric_panels=compared_runs.metric_panels(judged),
        remarks=compared_runs.remarks(judged),
        columns=compared_runs.columns_read(records),
    )


def _in_words(value: Any) -> tuple[str, bool]:
    """A setting for people, and whether a run has it."""
    if isinstance(value, compared_runs.Missing):
        return value.value, False
    return value if isinstance(value, str) else json.dumps(value), True


def _run(number: int, read: tuple[RunRecord, list[Frame], list[Frame]]) -> dict[str, Any]:
    """What the template says of a run by itself."""
    record, frames, others = read
    return {
        "name": record.name,
        "key": curves.run_key(number),
        "colour": COLOURS[number],
        "about": about(record),
        "facts": facts_of(record),
        "frames": frames,
        "others": others,
        "cache": record.config.get("cache", {}).get("path"),
        "configuration": json.dumps(record.config, indent=2),
    }
