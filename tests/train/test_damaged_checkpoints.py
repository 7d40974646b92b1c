"""Checkpoints that were damaged, copies beside them, and disks that are full."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from marking import few_fast
from places import TOOLS
from runs import assert_equal_runs, newest, trained
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.config import Config
from stages.weights.checkpoint import CheckpointError, find, latest

ALONE = ("unshare", "--user", "--map-root-user", "--mount")
STEPS = ("train.steps=4", "train.checkpoint_every=1", "train.keep=3")


@pytest.fixture
def config(trainable: Callable[..., Config]) -> Config:
    """A run with checkpoints of steps 1 to 3 of 4."""
    trained(trainable("train.steps=3", *STEPS[1:]))
    return trainable(*STEPS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def without_a_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / f"{name}.safetensors")
    del tensors["final_layer.linear.bias"]
    save_file(tensors, folder / f"{name}.safetensors")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors cannot be read"),
    "torn average": (lambda f: cut(f / "ema.safetensors"), "ema.safetensors cannot be read"),
    "no meter": (lambda f: (f / "meter.safetensors").unlink(), "meter.safetensors is missing"),
    "no state": (lambda f: (f / "state.json").unlink(), "state.json is missing"),
    "torn state": (lambda f: cut(f / "state.json"), "state.json cannot be read"),
    "other state": (lambda f: (f / "state.json").write_text("[]"), "state.json does not tell"),
    "no optimiser": (lambda f: shutil.rmtree(f / "optimizer"), "optimizer/.metadata is missing"),
    "torn metadata": (lambda f: cut(f / "optimizer/.metadata"), "optimizer/.metadata cannot be"),
    "torn optimiser": (lambda f: cut(f / "optimizer/__0_0.distcp"), "__0_0.distcp has"),
    "no part": (lambda f: (f / "optimizer/__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "nothing": (emptied, "state.json is missing"),
    "a tensor less": (lambda f: without_a_tensor(f, "model"), "Error(s) in loading state_dict"),
    "an average less": (lambda f: without_a_tensor(f, "ema"), "does not hold the tensors"),
}


@pytest.mark.parametrize("fault", few_fast(FAULTS, 4))
def test_a_damaged_checkpoint_is_named_with_its_fault_and_what_to_go_on_from(
    config: Config, fault: str
) -> None:
    damage, said = FAULTS[fault]
    folder = newest(config).folder
    damage(folder)
    with pytest.raises(CheckpointError) as found:
        trained(config)
    message = str(found.value)
    assert message.startswith(f"{folder} is damaged: ")
    assert said in message
    assert f"The newest whole one is {folder.with_name('step-00000002')}" in message
    subprocess.run(message.rpartition("of the way: ")[2].split(), check=True)
    assert trained(config).start == 2


def test_a_run_that_went_on_from_an_older_checkpoint_is_the_same(
    config: Config, trainable: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trainable(*STEPS, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    shutil.move(newest(config).folder, newest(config).folder.with_name("step-00000003.damaged"))
    trained(config)
    assert_equal_runs(config, whole)


def test_if_no_other_one_is_whole_that_is_said(config: Config) -> None:
    for path in (config.train.run / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"No other one is whole\. To begin anew, mo"):
        trained(config)


def test_copies_and_other_files_are_no_checkpoints(config: Config) -> None:
    folder = newest(config).folder
    shutil.copytree(folder, folder.with_name("step-00000006.bak"))
    shutil.copytree(folder, folder.with_name("step-9"))
    folder.with_name("step-00000009").write_text("a file")
    (config.train.run / "grids").mkdir()
    (config.train.run / "grids/step-00000003-copy.png").write_bytes(b"")
    found = latest(config.train.run)
    assert found is not None
    assert found.step == find(config.train.run, None).step == 3
    assert trained(config).start == 3
    assert folder.with_name("step-00000006.bak").is_dir()


@pytest.mark.parametrize("command", ["sample", "export", "evaluate", "report", "inspect"])
def test_every_command_names_a_damaged_checkpoint_or_looks_past_it(
    config: Config, built: Path, command: str, tmp_path: Path
) -> None:
    shutil.copytree(newest(config).folder, newest(config).folder.with_name("step-00000006.bak"))
    cut(newest(config).folder / "ema.safetensors")
    options = {"export": [str(tmp_path / "w.pt")], "sample": ["--set", "sample.images=1"]}
    settings = ["--config", str(built / "pipeline.toml"), "--set", f"train.run={config.train.run}"]
    shown = CliRunner().invoke(app, [command, *options.get(command, []), *settings])
    if command in ("report", "inspect"):
        assert shown.exit_code == 0, shown.output
    else:
        assert shown.exit_code == 1
        assert "is damaged: ema.safetensors cannot be read" in shown.output
        assert "The newest whole one is" in shown.output


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_run_goes_on_bit_for_bit(
    built: Path, trainable: Callable[..., Config], tmp_path: Path
) -> None:
    disk, whole = tmp_path / "disk", trainable(*STEPS, f"train.run={tmp_path / 'whole'}")
    disk.mkdir()
    trained(whole)
    program = TOOLS / "train_on_small_disk.py"
    done = subprocess.run(
        [*ALONE, sys.executable, program, built / "pipeline.toml", disk, tmp_path / "kept"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "step-00000002 cannot be written: No space left on device" in said["error"]
    assert said["there"] == ["step-00000001"]
    assert_equal_runs(trainable(*STEPS, f"train.run={tmp_path / 'kept'}"), whole)
