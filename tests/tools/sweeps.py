"""Sweeps over the tiny pipeline in tests."""

import json
from pathlib import Path

from pipeline.sweep.sweep_file import Sweep, load_sweep

ENCODER = "efficientnet-lite0"
TERM = f'{{kind = "repa", encoder = "{ENCODER}", depth = 2, projector_width = 32}}'
# Without a network that measures: seconds less for each run.
UNJUDGED = "\n[judge]\nimages = 2\nmetrics = []\nfrechet_encoders = []\n"
THREE = """
set.train.checkpoint_every = 2
variations = [
  {name = "plain", set.train.align = []},
  {name = "repa"},
  {name = "deep", set.train.align.0.depth = 3},
]
"""


def write_sweep(folder: Path, built: Path, *parts: str) -> Path:
    """A sweep.toml over the tiny configuration in another folder."""
    path = folder / "sweep.toml"
    head = f"base = {json.dumps(str(built / 'pipeline.toml'))}\n"
    path.write_text(head + "\n".join(parts))
    return path


def sweep_of(folder: Path, built: Path, *parts: str) -> Sweep:
    return load_sweep(write_sweep(folder, built, *parts))
