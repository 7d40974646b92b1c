"""Checkpoints: one folder each, there whole or not at all.

RUN/checkpoints/step-00010000/
  model.safetensors, ema.safetensors     weights under the published names
  optimizer/                             the optimiser's state, of torch.distributed.checkpoint
  meter.safetensors                      what was measured since the last line of the log
  state.json                             step, settings, model, fingerprints of the columns
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from cache.errors import RepaCacheError
from cache.files import atomic_folder
from stages.placement import Placement, barrier
from stages.train.folder import (
    checkpoint_path,
    checkpoint_paths,
    read_state,
    step_of,
    weights_path,
)
from stages.train.parallel import whole
from stages.train.transformer import TransformerConfig

State = Mapping[str, Any]


class CheckpointError(RepaCacheError):
    """A run does not have the checkpoint that is asked for."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The content of state.json."""
        return read_state(self.folder)

    @property
    def model(self) -> TransformerConfig:
        """What its weights are of."""
        return TransformerConfig(**self.state["model"])

    @property
    def step(self) -> int:
        """The number of steps made."""
        return step_of(self.folder.name)

    def weights_file(self, name: str) -> Path:
        """The file of `model` or `ema`."""
        return weights_path(self.folder, name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model` or `ema`, on the CPU."""
        return load_file(self.weights_file(name))

    @property
    def measured(self) -> Tensor:
        """What was measured since the last line of the log, [steps, values]."""
        return load_file(self.folder / "meter.safetensors")["rows"]

    def load_optimiser(self, state: dict[str, Any], *, is_sharded: bool) -> None:
        """Fill a state dict of the optimiser, of which each process may hold a part."""
        with _alone_unwarned():
            load(state, checkpoint_id=self.folder / "optimizer", no_dist=not is_sharded)


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds; tensors may be held in parts by the processes.

    weights: of `model` and `ema`; optimiser: its state dict; measured: [steps, values].
    """

    weights: Mapping[str, Mapping[str, Tensor]]
    optimiser: State
    measured: Tensor
    state: State


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    return [Checkpoint(folder) for folder in checkpoint_paths(run)]


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, if there is one."""
    return next(reversed(checkpoints(run)), None)


def find(run: Path, step: int | None) -> Checkpoint:
    """A run's checkpoint of a step, by default the newest. Raises CheckpointError without one."""
    there = {found.step: found for found in checkpoints(run)}
    if not there:
        raise CheckpointError(f"{run} has no checkpoint. Run `repa-cache train` first.")
    if step is not None and step not in there:
        steps = ", ".join(map(str, there))
        raise CheckpointError(f"{run} has no checkpoint of step {step}, but of {steps}.")
    return there[max(there) if step is None else step]


def agreed_latest(run: Path, place: Placement) -> Checkpoint | None:
    """The newest checkpoint as rank 0 sees it, which may have just written it."""
    found = [latest(run) if place.is_main else None]
    if place.world > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def save(run: Path, step: int, content: Content, place: Placement, *, is_sharded: bool) -> None:
    """Write a checkpoint in one step; all processes have to if they hold parts of it."""
    if not (place.is_main or is_sharded):
        return
    with _shared_folder(checkpoint_path(run, step), place, is_sharded) as aside:
        folder = aside / "optimizer"
        with _alone_unwarned():
            save_state(dict(content.optimiser), checkpoint_id=folder, no_dist=not is_sharded)
        for name, tensors in content.weights.items():
            gathered = {}
            for key, tensor in tensors.items():
                full = whole(tensor.detach())
                if place.is_main:
                    gathered[key] = full.cpu().contiguous()
            if place.is_main:
                save_file(gathered, aside / f"{name}.safetensors")
        if place.is_main:
            save_file({"rows": content.measured}, aside / "meter.safetensors")
            state = json.dumps({"step": step, **content.state}, indent=2)
            (aside / "state.json").write_text(state, encoding="utf-8")


@contextmanager
def _alone_unwarned() -> Iterator[None]:
    """Without torch's warning that a process saves or loads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is (disabled|unavailable)")
        yield


@contextmanager
def _shared_folder(folder: Path, place: Placement, is_shared: bool) -> Iterator[Path]:
    """A folder that is there whole or not at all, into which all processes write."""
    with atomic_folder(folder) if place.is_main else nullcontext() as aside:
        name = [aside]
        if is_shared:
            torch.distributed.broadcast_object_list(name)
        assert name[0] is not None
        yield name[0]
        if is_shared:
            barrier(place)


def remove_outdated(run: Path, keep: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep` and those of every N-th step, and what a crash left."""
    for old in checkpoints(run)[:-keep]:
        if keep_every is None or old.step % keep_every:
            shutil.rmtree(old.folder)
    for rest in (run / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(rest)
