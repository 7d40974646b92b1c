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
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from cache.errors import RepaCacheError
from cache.files import atomic_folder
from stages.model.transformer_config import TransformerConfig
from stages.placement import Placement, agreed, barrier
from stages.train.compute import whole
from stages.train.train_settings import TrainSettings, stored_settings
from stages.weight_files import READING_ERRORS
from stages.weights import run_folder


class CheckpointError(RepaCacheError):
    """A run does not have the checkpoint that is asked for, or cannot read or write it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        """The content of state.json."""
        return run_folder.read_state(self.folder)

    @property
    def settings(self) -> TrainSettings:
        """Those of its run. Raises RunError if this version does not understand them."""
        return stored_settings(self.state["settings"], self.run)

    @property
    def model(self) -> TransformerConfig:
        """What its weights are of."""
        kept, known = self.state["model"], {field.name for field in fields(TransformerConfig)}
        # Checkpoints of earlier versions also tell what projectors they have.
        return TransformerConfig(**{name: kept[name] for name in known & kept.keys()})

    @property
    def run(self) -> Path:
        """The folder of the run that it is of."""
        return self.folder.parents[1]

    @property
    def step(self) -> int:
        return run_folder.step_of(self.folder.name)

    def weights_file(self, name: str) -> Path:
        """The file of some weights. Raises CheckpointError if the run keeps none such."""
        if name == "ema2" and self.settings.second_ema_decay is None:
            raise CheckpointError(
                "it has no second moving average",
                where=self.folder,
                remedy="Set train.second_ema_decay in a new run.",
            )
        return run_folder.weights_path(self.folder, name)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model`, `ema` or `ema2`, on the CPU."""
        with reading_of(self):
            return load_file(self.weights_file(name))

    @property
    def measured(self) -> Tensor:
        """What was measured since the last line of the log, [steps, values]."""
        return load_file(self.folder / "meter.safetensors")["rows"]

    @property
    def fault(self) -> str | None:
        """What can be seen to be wrong with it without reading its tensors, if anything."""
        return run_folder.fault_of(self.folder) or self._optimiser_fault()

    def _optimiser_fault(self) -> str | None:
        folder = self.folder / "optimizer"
        try:
            parts = FileSystemReader(folder).read_metadata().storage_data.values()
        except (*READING_ERRORS, UnpicklingError) as error:
            return f"optimizer/.metadata cannot be read ({error})"
        ends: dict[str, int] = {}
        for part in parts:
            end = part.offset + part.length
            ends[part.relative_path] = max(ends.get(part.relative_path, 0), end)
        for name, size in ends.items():
            path = folder / name
            if not path.is_file():
                return f"optimizer/{name} is missing"
            if path.stat().st_size < size:
                return f"optimizer/{name} has {path.stat().st_size:,} bytes, expected {size:,}"
        return None

    def load_optimiser(self, state: dict[str, Any], *, is_sharded: bool) -> None:
        """Fill a state dict of the optimiser, of which each process may hold a part."""
        with reading_of(self), _alone_unwarned():
            load(state, checkpoint_id=self.folder / "optimizer", no_dist=not is_sharded)


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    return [Checkpoint(folder) for folder in run_folder.checkpoint_paths(run)]


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, if there is one, whole or damaged."""
    return next(reversed(checkpoints(run)), None)


def check_whole(found: Checkpoint, fault: str | None = None) -> None:
    """Raise CheckpointError, with what to go on from, if a checkpoint is damaged.

    fault: what is wrong with it; by default it is looked for.
    """
    if (fault := fault or found.fault) is None:
        return
    others = (other for other in reversed(checkpoints(found.run)) if other != found)
    whole = next((other for other in others if other.fault is None), None)
    aside = f"mv {found.folder} {found.folder}.damaged"
    remedy = f"No other one is whole. To begin anew, move it out of the way: {aside}"
    if whole is not None:
        remedy = (
            f"The newest whole one is {whole.folder}. To go on from it, move the damaged one out "
            f"of the way: {aside}"
        )
    raise CheckpointError(f"{found.folder} is damaged: {fault}", remedy=remedy)


def find(run: Path, step: int | None) -> Checkpoint:
    """A run's checkpoint of a step, by default the newest. Raises CheckpointError without one."""
    there = {found.step: found for found in checkpoints(run)}
    if not there:
        raise CheckpointError(f"{run} has no checkpoint", remedy="Run `repa-cache train` first.")
    if step is not None and step not in there:
        steps = ", ".join(map(str, there))
        raise CheckpointError(f"{run} has no checkpoint of step {step}, but of {steps}.")
    found = there[max(there) if step is None else step]
    check_whole(found)
    return found


def agreed_latest(run: Path, place: Placement) -> Checkpoint | None:
    """The newest checkpoint as rank 0 sees it, which may have just written it.

    Raises CheckpointError if it is damaged.
    """
    found = latest(run) if place.is_main else None
    if found is not None:
        check_whole(found)
    return agreed(found, place)


def save(
    path: Path,
    place: Placement,
    *,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimiser: Mapping[str, Any],
    measured: Tensor,
    state: Mapping[str, Any],
    is_sharded: bool,
) -> None:
    """Write a checkpoint in one step; all processes have to if they hold parts of its tensors.

    weights: of `model` and moving averages; optimiser: its state dict; measured: [steps, values].
    """
    if not (place.is_main or is_sharded):
        return
    with _written(path), atomic_folder(path) if place.is_main else nullcontext() as own:
        aside = agreed(own, place) if is_sharded else own
        assert aside is not None
        folder = aside / "optimizer"
        with _alone_unwarned():
            save_state(dict(optimiser), checkpoint_id=folder, no_dist=not is_sharded)
        for name, tensors in weights.items():
            gathered = {}
            for key, tensor in tensors.items():
                full = whole(tensor.detach())
                if place.is_main:
                    gathered[key] = full.cpu().contiguous()
            if place.is_main:
                save_file(gathered, aside / f"{name}.safetensors")
        if place.is_main:
            save_file({"rows": measured}, aside / "meter.safetensors")
            content = json.dumps(state, indent=2)
            (aside / "state.json").write_text(content, encoding="utf-8")
        if is_sharded:
            barrier(place)


@contextmanager
def reading_of(found: Checkpoint) -> Iterator[None]:
    """Raise CheckpointError, with what to go on from, if a checkpoint turns out to be damaged."""
    try:
        yield
    except (*READING_ERRORS, CheckpointException) as error:
        check_whole(found, _cause(error))


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Raise CheckpointError, with what becomes of the run, if a checkpoint cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        raise CheckpointError(
            f"{path} cannot be written: {_cause(error)}",
            remedy=(
                "Checkpoints that were there are kept: make room, and run the same command to go "
                "on from the newest."
            ),
        ) from error


def _cause(error: BaseException) -> str:
    """What a library's error came from, in a line: the system's word, if there is one."""
    if isinstance(error, CheckpointException) and error.failures:
        error, _ = next(iter(error.failures.values()))
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__cause__ or chain.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def _alone_unwarned() -> Iterator[None]:
    """Without torch's warning that a process saves or loads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is (disabled|unavailable)")
        yield


def remove_outdated(run: Path, keep: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep` and those of every N-th step, and what a crash left."""
    for old in checkpoints(run)[:-keep]:
        if keep_every is None or old.step % keep_every:
            shutil.rmtree(old.folder)
    for rest in (run / "checkpoints").glob(".step-*.partial"):
        shutil.rmtree(rest)
