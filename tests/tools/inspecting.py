"""Running `repa-cache inspect` in tests, and reading what it prints."""

import re
from pathlib import Path

import torch
from typer.testing import CliRunner

from pipeline.commands import app

CPU = torch.device("cpu")
FEATURES, LATENTS = "features/efficientnet-lite0", "latents/tiny-vae"
PIXELS, INT8 = "dataset.pixels=true", "encoders.efficientnet-lite0.storage=int8"


def inspect(folder: Path, *arguments: str, status: int = 0) -> str:
    config = ("--config", str(folder / "pipeline.toml"))
    result = CliRunner().invoke(app, ["inspect", *arguments, *config])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def cells(output: str, start: str) -> list[list[str]]:
    """The cells of lines that begin so, which stand at least two spaces apart."""
    lines = (line for line in output.splitlines() if line.startswith(start))
    return [re.split(r" {2,}", line.strip()) for line in lines]
