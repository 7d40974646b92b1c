"""Checkpoints: one folder each, there whole or not at all.

RUN/checkpoints/step-00010000/
  model.safetensors, ema.safetensors     weights under the published names
  optimizer.pt                           the optimiser's state
  state.json                             step, settings, model, fingerprints of the columns
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.files import atomic_folder

State = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The content of state.json."""
        content: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return content

    def weights_file(self, name: str) -> Path:
        """The file of `model` or `ema`."""
        return self.folder / f"{name}.safetensors"

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model` or `ema`, on the CPU."""
        return load_file(self.weights_file(name))

    def optimiser(self) -> dict[str, Any]:
        """The optimiser's state dict."""
        content: dict[str, Any] = torch.load(
            self.folder / "optimizer.pt", map_location="cpu", weights_only=True
        )
        return content


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    return [Checkpoint(folder) for folder in sorted((run / "checkpoints").glob("step-*"))]


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, if there is one."""
    return next(reversed(checkpoints(run)), None)


def save(
    run: Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimiser: State,
    state: State,
    keep: int,
) -> Checkpoint:
    """Write a checkpoint in one step; remove all but the newest `keep`, and what a crash left."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(folder) as aside:
        for name, tensors in weights.items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, aside / f"{name}.safetensors")
        torch.save(optimiser, aside / "optimizer.pt")
        (aside / "state.json").write_text(json.dumps({"step": step, **state}, indent=2))
    outdated = [old.folder for old in checkpoints(run)[:-keep]]
    for rest in (*outdated, *folder.parent.glob(".step-*.partial")):
        shutil.rmtree(rest)
    return Checkpoint(folder)
