"""Analyses at the steps where the runs of a sweep are judged."""

import csv
from pathlib import Path

import pytest
from sweeps import ENCODER, THREE, UNJUDGED, sweep_of

from cache.errors import NotACacheError
from pipeline.exits import ConfigError
from pipeline.sweep.states import judging
from pipeline.sweep.summary import csv_path, summarise, write_csv
from pipeline.sweep.sweep import run_sweep
from pipeline.sweep.work import Work, perform

ANALYSES = 'analyses = ["losses", "cknna", "probe"]\nlevels = [0.2, 0.6]\nrows = 20\n'


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def test_a_run_is_analysed_where_it_is_judged(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images that are held out would lie in a cache of their own.
    held_out = f'validation = "{built / "tiny.zarr"}"'
    sweep = sweep_of(tmp_path, built, THREE, UNJUDGED + ANALYSES + held_out)
    _, run, _ = sweep.runs
    monkeypatch.chdir(tmp_path)
    judge, by = run.judge.model_dump_json(), judging(run)
    perform(Work(sweep.base, run.overrides, (4,), judge, by, str(tmp_path / "lock")))
    tables = {
        name: lines_of(run.folder / f"analysis/{name}-step-00000004.csv")
        for name in ("losses", "cknna", "probe")
    }
    assert [(line["noise"], line["images"]) for line in tables["losses"]] == [
        *(("0.2", "20"), ("0.6", "20"))
    ]
    assert len(tables["cknna"]) == 8
    (point,) = summarise(sweep).runs[1].points
    losses = [float(line["loss"]) for line in tables["losses"]]
    assert point.results["denoising loss"].value == pytest.approx(sum(losses) / 2)
    best = max(float(line["cknna"]) for line in tables["cknna"])
    assert point.results[f"cknna {ENCODER}"].value == best
    probes = [line for line in tables["probe"] if line["features"] == "hidden states"]
    assert point.results["linear probe"].value == max(float(line["top1"]) for line in probes)
    assert point.results["linear probe"].images == int(probes[0]["held_out"])
    write_csv(summarise(sweep), csv_path(sweep))
    (line,) = [one for one in lines_of(csv_path(sweep)) if one["run"] == "repa"]
    assert float(line["denoising loss"]) == point.results["denoising loss"].value


def test_runs_are_judged_again_by_other_analyses_alone(tmp_path: Path, built: Path) -> None:
    found = [
        judging(sweep_of(tmp_path, built, THREE, "[judge]", *lines).runs[0])
        for lines in ((), ("rows = 3",), (ANALYSES,), (ANALYSES.replace("20", "10"),))
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_held_out_images_are_for_losses_and_have_to_be_there(tmp_path: Path, built: Path) -> None:
    missing = '[judge]\nvalidation = "gone.zarr"\n'
    with pytest.raises(ConfigError, match=r'only if judge\.analyses has "losses"'):
        sweep_of(tmp_path, built, THREE, missing)
    with pytest.raises(NotACacheError, match=r"gone\.zarr"):
        run_sweep(sweep_of(tmp_path, built, THREE, missing, ANALYSES))
