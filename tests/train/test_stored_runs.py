"""Runs and their cache as the version before `[[train.align]]` wrote them go on as if with it."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from places import ROOT
from runs import CPU
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.stored_configs import run_config
from stages.train.former_settings import in_todays_form
from stages.train.loop import train

RUNS = ("repa", "nt-xent")
SPEEDS = {"steps_per_second", "images_per_second", "data_wait", "memory_gb"}


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ROOT / "tests" / "stored" / "before.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in json.loads(line).items() if key not in SPEEDS}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_goes_on_where_the_version_that_began_it_would_have_ended(
    stored: Path, name: str
) -> None:
    config = run_config(Path("runs") / name, ["train.steps=6"])
    # The run keeps it; the default is another.
    assert config.train.compute.parallel == "ddp"
    assert train(config.train, config.tensors, CPU).start == 3
    expected = stored / "expected" / name
    for line, other in zip(
        lines(config.train.run / "log.jsonl"), lines(expected / "log.jsonl"), strict=True
    ):
        assert line == pytest.approx(other, rel=1e-4)
    weights = load_file(config.train.run / "checkpoints" / "step-00000006" / "ema.safetensors")
    for key, tensor in load_file(expected / "ema.safetensors").items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-5, atol=1e-8, msg=key)


@pytest.mark.slow
def test_a_stored_run_can_be_reported_drawn_from_measured_and_exported(stored: Path) -> None:
    for command in (
        ["report", "runs/repa", "runs/nt-xent", "--out", "report.html"],
        ["sample", "runs/nt-xent", "--set", "sample.images=2"],
        ["evaluate", "runs/repa"],
        ["export", "runs/repa", "repa.safetensors"],
        ["analyze", "cknna", "runs/repa", "--levels", "0.5"],
        ["inspect", "cache.zarr"],
        ["verify", "cache.zarr"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    page = (stored / "report.html").read_text()
    assert "at block 2, weight 0.175, until step 4" in page


def test_settings_of_one_kind_for_all_are_those_of_a_list() -> None:
    former = {"encoders": ["a", "b"], "alignment": "nt-xent", "weight": 0.5, "depth": 4}
    entry = {"kind": "nt-xent", "depth": 4, "weight": 0.25, "until": None, "temperature": 0.1}
    entry["projector_width"] = 2048
    assert in_todays_form({"seed": 3, **former}) == {
        "seed": 3,
        "align": [{**entry, "encoder": "a"}, {**entry, "encoder": "b"}],
    }
    today = {"seed": 3, "align": []}
    assert in_todays_form(today) == today
