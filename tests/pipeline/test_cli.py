import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny import save_jpeg
from tiny_cache import content
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.commands.init import PRESETS
from pipeline.config import Config
from stages.train.log import read_log

RUNNER = CliRunner()
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]
PROGRAM = [sys.executable, "-m", "pipeline"]
# The first of two processes of torchrun.
TWO = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def folder(tiny: Callable[..., Config], images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of somebody with the tiny pipeline.toml."""
    tiny()
    monkeypatch.chdir(images.parent)
    return images.parent


def invoke(*arguments: str, status: int = 0) -> str:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


def test_run_makes_everything_and_says_where_it_lies(folder: Path) -> None:
    output = invoke("run")
    for said in (
        "tiny.zarr: 21 rows; 6 shards made in",
        "run: step 4 of SiT-XS/2",
        "run/samples/step-00000004: 6 images; 6 drawn",
        "features/efficientnet-lite0",
        "alignment/efficientnet-lite0",
        "run/curves.png",
        "run/samples/step-00000004.png",
        "run/report.html",
        "fd_efficientnet-lite0",
    ):
        assert said in output
    with Image.open(folder / "run/curves.png") as curves:
        assert curves.size[0] > 1000
    page = (folder / "run/report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<svg") == 8
    assert "http" not in page
    assert json.loads((folder / "run/config.json").read_text())["train"]["steps"] == 4
    assert re.search(r"encoders +\S+ s to cache; in every step \S+ s", output)
    again = invoke("run")
    assert "nothing was missing" in again
    assert "0 steps made" in again


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_the_commands_one_by_one_do_the_same() -> None:
    assert "6 shards made" in invoke("build")
    assert "4 steps made" in invoke("train")
    assert "6 drawn" in invoke("sample")
    row = r"fd_efficientnet-lite0 +[\d.]+ +[\d.]+ +6 +tiny\.zarr +21 +fewer"
    assert re.search(row, invoke("evaluate"))
    assert "0 steps made" in invoke("train")
    assert "2 steps made" in invoke("train", "--set", "train.steps=6")


@pytest.mark.usefixtures("folder")
def test_evaluating_without_metrics_says_so() -> None:
    assert "evaluate.frechet_encoders are empty" in invoke(
        "run", "--set", "evaluate.frechet_encoders=[]"
    )


def test_a_command_out_of_order_says_what_comes_first(folder: Path) -> None:
    assert "Run `repa-cache build` first" in invoke("train", status=1)
    assert "Run `repa-cache train` first" in invoke("sample", status=1)
    assert not list(folder.glob("run*"))


def test_training_on_a_stale_cache_is_refused(folder: Path) -> None:
    invoke("build")
    (folder / "other").mkdir()
    settings = (
        "--set",
        "dataset.resolution=64",
        "--set",
        "encoders.efficientnet-lite0.input_size=128",
    )
    output = invoke("train", *settings, status=1)
    assert "resolution: cache 32, configuration 64" in output


def test_verify_lists_what_is_wrong_and_build_repair_mends_it(folder: Path) -> None:
    assert "Run `repa-cache build` first" in invoke("verify", status=1)
    invoke("build")
    assert "complete, and every byte is what was written" in invoke("verify")
    (folder / "tiny.zarr/latents/tiny-vae/moments/c.1.0.0.0").unlink()
    output = invoke("verify", status=1)
    assert "latents/tiny-vae/moments shard 1" in output
    assert "its file is missing" in output
    assert "repa-cache build --repair" in output
    assert "1 shards made" in invoke("build", "--repair")
    assert "complete" in invoke("verify")


def test_verify_measures_how_true_the_tensors_are(folder: Path) -> None:
    int8 = ("--set", "encoders.efficientnet-lite0.storage=int8")
    invoke("build", *int8)
    output = invoke("verify", "--fidelity", "9", *int8)
    latents, tokens = [line.split() for line in output.splitlines() if "/" in line][-2:]
    assert latents[:3] == ["latents/tiny-vae/moments", "float16", "9"]
    assert tokens[:3] == ["features/efficientnet-lite0/tokens", "int8", "9"]
    mean, first, lowest, error, change = map(float, tokens[3:])
    assert 1 > mean > first > lowest > 0.999
    assert 0 < error < 0.02
    assert 0 < abs(change) < 1e-3
    assert "storage: cache" in invoke("verify", "--fidelity", "9", status=1)
    assert folder.exists()


def test_build_takes_over_changes_and_rebuilds_when_asked(folder: Path) -> None:
    invoke("build")
    save_jpeg(folder / "images/class1/3.jpg", seed=1)
    assert "repa-cache build --update" in invoke("build", status=1)
    assert "2 shards made" in invoke("build", "--update")
    save_jpeg(folder / "images/class1/new.jpg", seed=2)
    assert "22 rows; 1 images added; 2 shards made" in invoke("build")
    output = invoke("build", "--rebuild", "tiny-vae", "--shards", ":1")
    assert re.search(r"22 rows; 1 shards made in .*; 2 shards left to make", output)
    output = invoke("build", "--shards", ":1")
    assert output.splitlines()[-1].endswith("22 rows; 2 shards left to make")
    assert "2 shards made" in invoke("build")
    assert "unknown name 'vae'" in invoke("build", "--rebuild", "vae", status=1)


def test_bench_says_what_reading_feeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.reading_speed.MEASURE_SECONDS", 0.1)
    assert "Run `repa-cache build` first" in invoke("bench", status=1)
    invoke("build")
    before = content(folder / "tiny.zarr")
    cold, warm, needed = invoke("bench").splitlines()[-3:]
    for line, name in ((cold, "cold"), (warm, "warm")):
        assert re.fullmatch(
            rf"{name}: [\d,]+ images/s, [\d.]+ GB/s, [\d,.]+ steps/s of 4 images, "
            r"feeds [\d.e+-]+ GPUs",
            line,
        )
    assert "trains SiT-XS/2 on" in needed
    assert content(folder / "tiny.zarr") == before


def test_a_wrong_configuration_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for command in set(COMMANDS) - {"init", "export", "sweep", "copy"}:
        assert "train.align.0.depth: SiT-XS/2 has 4 blocks" in invoke(
            command, "--set", "train.align.0.depth=9", status=1
        )
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_cannot_go_on_keeps_its_configuration(folder: Path) -> None:
    invoke("build")
    invoke("train", "--set", "train.steps=2")
    before = (folder / "run/config.json").read_bytes()
    assert "made with other settings" in invoke("train", "--set", "train.seed=1", status=1)
    assert (folder / "run/config.json").read_bytes() == before
    invoke("train", "--set", "train.steps=3")
    assert b'"steps": 3' in (folder / "run/config.json").read_bytes()


def test_an_error_has_a_traceback_only_when_asked_for(folder: Path) -> None:
    assert "Traceback" not in invoke("sample", status=1)
    assert RUNNER.invoke(app, ["sample", "--debug"]).exception is not None
    assert folder.exists()


def test_only_training_and_sampling_run_in_several_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    assert "runs in one process, not under torchrun" in invoke("build", status=1)
    assert "cannot be shared by 2 processes" in invoke(
        "train", "--set", "train.batch_size=5", status=1
    )
    assert not (folder / "tiny.zarr").exists()


@pytest.mark.parametrize("arguments", [["biuld"], ["build", "--sett", "a.b=1"]])
def test_wrong_usage_is_status_two(arguments: list[str]) -> None:
    assert RUNNER.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    assert f"Example: repa-cache {name}" in invoke(name, "--help")


def test_init_writes_a_preset_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("init", "--preset", "imagenet256-sit-xl2")
    written = (tmp_path / "pipeline.toml").read_text()
    assert written == PRESETS["imagenet256-sit-xl2"].read_text()
    assert "exists already" in invoke("init", status=1)
    named = re.findall(
        r"(?:imagenet|cifar|coco)[\w-]+|demo(?:-text|-pixels)?", invoke("init", "--help")
    )
    assert set(named) == set(PRESETS)
    output = invoke("init", "--preset", "imagenet256-sit-xl", "--config", "x.toml", status=1)
    assert "did you mean 'imagenet256-sit-xl2'?" in output


def finished(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "begun",
    [
        "tiny.zarr/features/efficientnet-lite0/ledger/c.0.0",
        "run/log.jsonl",
        "run/samples/*/000001.png",
        "run/samples/step-*.png",
    ],
    ids=["build", "train", "sample", "evaluate"],
)
def test_ctrl_c_in_any_stage_stops_cleanly_and_the_same_command_completes(
    folder: Path, begun: str
) -> None:
    slow = ("--set", "train.steps=40", "--set", "sample.images=60", "--set", "sample.batch_size=1")
    process = subprocess.Popen(
        [*PROGRAM, "run", *slow], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    while not list(folder.glob(begun)):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Run the same command to go on." in errors
    assert "Traceback" not in errors
    assert not list(folder.rglob("*.partial"))
    done = finished(folder, "run", *slow)
    assert done.returncode == 0, done.stderr
    assert len(read_log(folder / "run/log.jsonl")) == 40
    assert len(list(folder.glob("run/samples/step-00000040/*.png"))) == 60
