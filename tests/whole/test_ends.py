"""How training in several processes ends: all of them soon, and with one word."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from places import TOOLS
from runs import log_values, newest

from pipeline.config import Config

TRAIN = ("-m", "pipeline", "train")
# torchrun passes on what it is told to handle, and dies of other signals.
HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--nproc-per-node=2", "--standalone", HANDLED),
)
FAILING = str(TOOLS / "failing_rank.py")
ENDLESS = ("train.steps=100000", "train.checkpoint_every=100000")
# Half of what torchrun and SLURM wait before they kill; a crowded machine needs some of it.
SOON_SECONDS = 15.0


class Training:
    """A run without end."""

    def __init__(self, config: Config, folder: Path, command: Sequence[str], *more: str) -> None:
        self.config = config
        overrides = (f"train.run={config.train.run}", *ENDLESS, *more)
        words = [part for setting in overrides for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [*command, *words],
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_steps(self, steps: int = 3) -> None:
        while len(log_values(self.config)) < steps:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def end(self) -> tuple[str, float]:
        """What was said until all processes were gone, and the seconds that it took."""
        start = time.monotonic()
        try:
            _, errors = self.process.communicate(timeout=60)
        finally:
            spent, left = time.monotonic() - start, self.everybody()
            for number in left:
                os.kill(number, signal.SIGKILL)
        assert left == []
        return errors, spent

    def everybody(self) -> list[int]:
        """All processes of this run: torchrun puts those that train into sessions of their own."""
        run = f"train.run={self.config.train.run}".encode()
        found = []
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if run in command.read_bytes().split(b"\0"):
                    found.append(int(command.parent.name))
        return found


def ask_torchrun(number: signal.Signals) -> Callable[[Training], None]:
    return lambda training: training.process.send_signal(number)


def ask_all(number: signal.Signals) -> Callable[[Training], object]:
    return lambda training: [os.kill(process, number) for process in training.everybody()]


def ask_one(number: signal.Signals) -> Callable[[Training], None]:
    return lambda training: os.kill(max(training.everybody()), number)


WAYS = {
    "torchrun-term": ask_torchrun(signal.SIGTERM),
    "torchrun-hup": ask_torchrun(signal.SIGHUP),
    "torchrun-usr1": ask_torchrun(signal.SIGUSR1),
    "all-int": ask_all(signal.SIGINT),
    "all-usr1": ask_all(signal.SIGUSR1),
    "one-usr1": ask_one(signal.SIGUSR1),
    "one-term": ask_one(signal.SIGTERM),
    "torchrun-kill": ask_torchrun(signal.SIGKILL),
}


def check_stop(training: Training, way: str, seconds: float) -> float:
    training.wait_for_steps()
    WAYS[way](training)
    errors, spent = training.end()
    assert errors.count("repa-cache: Stopped after step") == 1, errors
    assert spent < seconds, errors
    assert newest(training.config).step == len(log_values(training.config))
    return spent


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=[pytest.mark.slow] if w != "torchrun-term" else []) for w in WAYS]
)
def test_a_signal_ends_all_processes_with_a_checkpoint(
    built: Path, trainable: Callable[..., Config], way: str
) -> None:
    check_stop(Training(trainable(), built, (*TORCHRUN, *TRAIN)), way, SOON_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_runs_that_are_stopped_are_all_gone_within_five_seconds(
    built: Path, trainable: Callable[..., Config], tmp_path: Path
) -> None:
    spent = []
    for number in range(50):
        config = trainable(f"train.run={tmp_path / str(number)}")
        parallel = f"train.compute.parallel={'fsdp' if number % 5 == 0 else 'ddp'}"
        training = Training(config, built, (*TORCHRUN, *TRAIN), parallel)
        spent.append(check_stop(training, "torchrun-term", 5.0))
    print(f"longest {max(spent):.2f} s, median {sorted(spent)[25]:.2f} s")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_single_process_stops_with_a_checkpoint_too(
    built: Path, trainable: Callable[..., Config], number: signal.Signals
) -> None:
    training = Training(trainable(), built, (sys.executable, *TRAIN))
    training.wait_for_steps()
    training.process.send_signal(number)
    errors, _ = training.end()
    assert training.process.returncode == 130
    assert "with a checkpoint in" in errors


@pytest.mark.slow
def test_what_nohup_starts_outlives_its_terminal(
    built: Path, trainable: Callable[..., Config]
) -> None:
    training = Training(trainable(), built, ("nohup", sys.executable, *TRAIN))
    training.wait_for_steps()
    training.process.send_signal(signal.SIGHUP)
    training.wait_for_steps(len(log_values(training.config)) + 3)
    training.process.send_signal(signal.SIGTERM)
    assert "with a checkpoint in" in training.end()[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param("error", "planted: a row is not what was written", marks=pytest.mark.slow),
        pytest.param("error everywhere", "planted: a row is not", marks=pytest.mark.slow),
        pytest.param("fault", "Unexpected ZeroDivisionError: planted", marks=pytest.mark.slow),
        pytest.param("kill", "Another process of this run is gone", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_one_process_ends_all_and_is_said_once(
    built: Path, trainable: Callable[..., Config], kind: str, said: str
) -> None:
    training = Training(trainable(), built, (*TORCHRUN, FAILING, kind, "train"))
    training.wait_for_steps()
    errors, spent = training.end()
    assert training.process.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("repa-cache: ")]
    assert len(lines) == 1, errors
    assert said in lines[0]
    assert spent < SOON_SECONDS


@pytest.mark.slow
def test_what_keeps_all_processes_from_starting_is_said_once(
    built: Path, trainable: Callable[..., Config]
) -> None:
    training = Training(trainable(), built, (*TORCHRUN, *TRAIN), "train.batch_size=5")
    errors, _ = training.end()
    assert errors.count("cannot be shared by 2 processes") == 1
