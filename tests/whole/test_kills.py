"""Training that is killed, in real processes, and goes on as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_equal_runs, log_values, newest

from pipeline.config import Config

PROGRAM = (sys.executable, "-m", "pipeline", "train")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
SETTINGS = ("train.steps=40", "train.checkpoint_every=3", "train.keep=1")


def start(command: tuple[str, ...], folder: Path, run: Path) -> subprocess.Popen[str]:
    """Train in a process group of its own, for the whole of it to be killed at once."""
    overrides = [part for setting in (f"train.run={run}", *SETTINGS) for part in ("--set", setting)]
    return subprocess.Popen(
        [*command, *overrides],
        cwd=folder,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    _, errors = process.communicate()
    assert process.returncode == status, errors
    return errors


def wait_for_steps(process: subprocess.Popen[str], config: Config, steps: int) -> None:
    while len(log_values(config)) < steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def check_kills(
    command: tuple[str, ...], built: Path, trainable: Callable[..., Config], kills: int
) -> None:
    """Kill a run at random moments, and compare what comes of it with an undisturbed one."""
    generator = random.Random(0)
    killed = trainable()
    whole = trainable(f"train.run={killed.train.run.with_name('whole')}")
    finish(start(command, built, whole.train.run))
    for _ in range(kills):
        process = start(command, built, killed.train.run)
        wait_for_steps(process, killed, generator.randrange(1, 36))
        time.sleep(generator.random() / 10)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(command, built, killed.train.run))
    assert_equal_runs(killed, whole)
    assert [p.name for p in (killed.train.run / "checkpoints").iterdir()] == ["step-00000040"]


@pytest.mark.slow
def test_a_run_killed_many_times_equals_an_undisturbed_one(
    built: Path, trainable: Callable[..., Config]
) -> None:
    check_kills(PROGRAM, built, trainable, kills=20)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_killed_at_random_moments_equal_undisturbed_ones(
    built: Path, trainable: Callable[..., Config], parallel: str
) -> None:
    command = (*TORCHRUN, "-m", "pipeline", "train", "--set", f"train.compute.parallel={parallel}")
    check_kills(command, built, trainable, kills=4)


@pytest.mark.slow
def test_two_processes_stop_together_when_asked_to_and_go_on_bit_for_bit(
    built: Path, trainable: Callable[..., Config], tmp_path: Path
) -> None:
    command = (*TORCHRUN, "-m", "pipeline", "train")
    stopped, whole = trainable(), trainable(f"train.run={tmp_path / 'whole'}")
    process = start(command, built, stopped.train.run)
    wait_for_steps(process, stopped, 5)
    # As Ctrl-C does: to torchrun and to its processes, to which torchrun passes it on as well.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "with a checkpoint in" in errors
    assert 5 <= newest(stopped).step < 40
    assert len(log_values(stopped)) == newest(stopped).step
    finish(start(command, built, stopped.train.run))
    finish(start(command, built, whole.train.run))
    assert_equal_runs(stopped, whole)
