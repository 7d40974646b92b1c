"""What analyses found of a run at a step, a number of each, from the tables that they wrote."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean

from pipeline.report.metrics import CKNNA, LOSS, PROBE
from pipeline.sweep.sweep_file import SweepRun
from stages.analyze.analysis_options import HIDDEN_STATES
from stages.evaluate.results import Result
from stages.weights.run_folder import analyses_path, step_name

Lines = list[dict[str, str]]


def analysed_at(run: SweepRun, step: int) -> dict[str, Result]:
    """The mean loss over levels of noise, and of blocks and levels the highest of each other.

    By metric; of CKNNA there is one for each encoder.
    """
    readers = {"losses": _loss, "probe": _probe, "cknna": _cknna}
    return {
        result.metric: result
        for name in run.judge.analyses
        if (lines := _lines(analyses_path(run.folder) / f"{name}-{step_name(step)}.csv"))
        for result in readers[name](lines)
    }


def _lines(path: Path) -> Lines:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _loss(lines: Lines) -> Iterator[Result]:
    value = mean(float(line["loss"]) for line in lines)
    yield _result(LOSS, value, lines[0], "images")


def _probe(lines: Lines) -> Iterator[Result]:
    best = max((line for line in lines if line["features"] == HIDDEN_STATES), key=_top1)
    yield _result(PROBE, _top1(best), best, "held_out")


def _top1(line: Mapping[str, str]) -> float:
    return float(line["top1"])


def _cknna(lines: Lines) -> Iterator[Result]:
    for encoder in dict.fromkeys(line["encoder"] for line in lines):
        value = max(float(line["cknna"]) for line in lines if line["encoder"] == encoder)
        yield _result(f"{CKNNA} {encoder}", value, lines[0], "images")


def _result(metric: str, value: float, line: Mapping[str, str], images: str) -> Result:
    return Result(metric, value, None, int(line[images]), None, None)
