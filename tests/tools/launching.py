"""Training in several processes, and how far such runs may differ from others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import TOOLS
from runs import log_values, newest

from pipeline.config import Config

LAUNCH = ("-m", "torch.distributed.run", "--standalone")


def launch(folder: Path, scenarios: list[list[str]], processes: int = 2) -> None:
    path = folder / "scenarios.json"
    path.write_text(json.dumps(scenarios))
    torchrun(TOOLS / "ranks.py", folder / "pipeline.toml", path, processes=processes)


def torchrun(program: Path, *arguments: Path, processes: int = 2) -> str:
    """What a program says in several processes, none of which may fail or warn."""
    done = subprocess.run(
        [sys.executable, *LAUNCH, f"--nproc-per-node={processes}", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr, done.stderr
    return done.stderr


def assert_close_runs(one: Config, other: Config, tolerance: float) -> None:
    for line, expected in zip(log_values(one), log_values(other), strict=True):
        assert line == pytest.approx(expected, rel=tolerance, abs=tolerance / 10)
    for weights in ("model", "ema"):
        theirs = newest(other).weights(weights)
        for key, tensor in newest(one).weights(weights).items():
            torch.testing.assert_close(tensor, theirs[key], rtol=tolerance, atol=tolerance / 10)
