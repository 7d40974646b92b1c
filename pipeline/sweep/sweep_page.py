"""The page of a sweep: settings against metrics, curves, samples, and what the cache saved."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from pipeline.pages import write_page
from pipeline.pages.figures import COLOURS
from pipeline.report.curves import run_key
from pipeline.report.grid_pictures import FEWEST, MOST, PICTURES, SIDE, Picture, evenly, shown
from pipeline.report.metrics import direction
from pipeline.report.reading import Savings, savings
from pipeline.report.report_page import page_path as page_of_run
from pipeline.sweep.schedule import Failure
from pipeline.sweep.summary import Group, RunSummary, Summary, csv_path
from pipeline.sweep.sweep_curves import AXES, dashes_of, panels
from pipeline.sweep.sweep_file import Sweep
from pipeline.tables import duration

LACKING = "\N{EN DASH}"


def page_path(sweep: Sweep) -> Path:
    """The page of a sweep, in the folder of its runs."""
    return sweep.folder / "sweep.html"


def write_sweep_page(summary: Summary, failures: Sequence[Failure]) -> Path:
    """Write the page; returns where it is."""
    sweep, path = summary.sweep, page_path(summary.sweep)
    saved = savings(sweep.config, [run.read for run in summary.runs])
    groups = [_group(summary, number, group) for number, group in enumerate(summary.groups)]
    columns = list(dict.fromkeys(c.name for run in summary.runs for c in run.read.columns))
    write_page(
        path,
        "sweep.html",
        title=sweep.path.stem,
        about=list(_about(summary)),
        facts=_facts(summary, saved),
        failures=[(one.run.name, one.error, str(one.log)) for one in failures],
        gridded=summary.gridded,
        metrics={metric: direction(metric) for metric in summary.metrics},
        groups=groups,
        axes=AXES,
        panels=panels(summary) if any(run.record for run in summary.runs) else {},
        has_own=any(group["own"] for group in groups),
        has_grids=any(group["frames"] for group in groups),
        same=_same(sweep),
        columns=columns,
        reads=list(_reads(summary, columns)),
        savings=list(savings_lines(saved)),
        points=list(_points(summary, path.parent)),
        csv=csv_path(sweep).name,
    )
    return path


def _about(summary: Summary) -> Iterator[str]:
    sweep = summary.sweep
    yield f"{sweep.path.name}: variations of {sweep.base}, in {sweep.folder}"
    yield f"cache: {sweep.config.cache.path}"
    if sweep.rungs:
        steps = ", ".join(f"{step:,}" for step in sweep.rungs)
        early = sweep.settings.early_stop
        metric = early.metric or sweep.metrics[0]
        yield f"at step {steps} the best {early.keep:.0%} by {metric} go on"


def _same(sweep: Sweep) -> str:
    sample = sweep.config.sample
    return (
        f"The same noises and labels everywhere: image i of all runs has those of seed "
        f"{sample.seed}, by {sample.images:,} images with labels {sample.labels}."
    )


def _facts(summary: Summary, saved: Savings) -> dict[str, tuple[str, str]]:
    runs = summary.runs
    done = sum(run.state == "done" or run.state.startswith("ended") for run in runs)
    hours = sum(run.record.seconds for run in runs if run.record)
    images = sum(run.record.images for run in runs if run.record)
    read = sum(run.read.bytes for run in runs)
    return {
        "runs": (f"{done:,} of {len(runs):,}", f"{len(summary.groups):,} settings"),
        "training": (duration(hours), "of all runs together"),
        "images seen": (f"{images:,}", "by all runs"),
        "read": (decimal(read), "from the cache"),
        "encoder time saved": (
            duration(saved.saved_seconds) if saved.saved_seconds > 0 else "none yet",
            "building counted",
        ),
    }


def savings_lines(saved: Savings) -> Iterator[str]:
    """What the cache saved, in sentences."""
    if saved.online_seconds or saved.build_seconds:
        on = f" (on {', '.join(saved.devices)})" if saved.devices else ""
        yield (
            f"Encoders in every step would have taken {duration(saved.online_seconds)}, at the "
            f"speed that was measured when the cache was built{on}; building took "
            f"{duration(saved.build_seconds)}."
        )
        if saved.saved_seconds > 0:
            yield f"The cache saved {duration(saved.saved_seconds)} of encoder time."
        else:
            yield "It has not paid yet: these runs read fewer images than were encoded."
    if saved.unmeasured:
        yield (
            f"Not known of {', '.join(saved.unmeasured)}: made by an earlier version, or by a "
            "build that was killed."
        )


def _group(summary: Summary, number: int, group: Group) -> dict[str, Any]:
    step = group.steps[-1] if group.steps else None
    spreads = {m: group.spread(m, step) if step else None for m in summary.metrics}
    shown_run, frames = _frames(group, len(summary.groups))
    speed, hours = group.images_per_second, group.hours
    return {
        "name": group.name,
        "key": run_key(number),
        "colour": COLOURS[number % len(COLOURS)],
        "dashes": dashes_of(number),
        "settings": [summary.setting(group, name) for name in summary.gridded],
        "own": summary.own(group),
        "seeds": len(group.runs),
        "step": f"{step:,}" if step else LACKING,
        "results": [
            (one.shown if one else LACKING, summary.best(metric) == group.name)
            for metric, one in spreads.items()
        ],
        "speed": f"{speed.mean:,.4g}" if speed else LACKING,
        "hours": f"{hours.mean:.3g}" if hours else LACKING,
        "state": group.state,
        "shown_run": shown_run,
        "frames": frames,
    }


def _frames(group: Group, groups: int) -> tuple[str, list[tuple[int, Picture]]]:
    """The first run of a group that has samples, and these by step."""
    count = max(FEWEST, min(MOST, PICTURES // groups))
    for run in group.runs:
        grids = {point.step: point.grid for point in run.points if point.grid is not None}
        if grids:
            steps = evenly(sorted(grids), count)
            title = f"seed {run.run.seed}" if len(group.runs) > 1 else ""
            return title, [(step, shown(grids[step], SIDE)) for step in steps]
    return "", []


def _keyed(summary: Summary) -> Iterator[tuple[str, RunSummary]]:
    for number, group in enumerate(summary.groups):
        yield from ((run_key(number), run) for run in group.runs)


def _reads(summary: Summary, columns: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for key, run in _keyed(summary):
        images = {column.name: column.images for column in run.read.columns}
        saved = run.read.saved_seconds
        yield {
            "key": key,
            "name": run.run.name,
            "step": f"{run.step:,}",
            "images": [f"{images[name]:,}" if name in images else LACKING for name in columns],
            "bytes": decimal(run.read.bytes),
            "saved": duration(saved) if saved else LACKING,
        }


def _points(summary: Summary, folder: Path) -> Iterator[Mapping[str, Any]]:
    for key, run in _keyed(summary):
        page = page_of_run(run.run.folder)
        link = os.path.relpath(page, folder) if page.is_file() else ""
        for point in run.points:
            values = [
                point.results[metric].shown if metric in point.results else LACKING
                for metric in summary.metrics
            ]
            cells = [f"{point.step:,}", f"{point.images:,}", f"{point.hours:.3g}", *values]
            yield {
                "key": key,
                "name": run.run.name,
                "state": run.state,
                "page": link,
                "cells": cells,
            }
