"""Weights of a run, a checkpoint or a published file, under the names of this project.

Published checkpoints of SiT, DiT and REPA are a state dict, or what their training writes: one
for each of "ema" and "model", beside the optimiser.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cache.errors import RepaCacheError
from stages.model.transformer import TransformerConfig
from stages.weight_files import read_weight_file, reading
from stages.weights import checkpoint
from stages.weights.checkpoint import Checkpoint
from stages.weights.layouts import State, own_names


class WeightsError(RepaCacheError):
    """Weights cannot be read, or are not those of the model."""


@dataclass(frozen=True)
class Found:
    """Weights under the names of this project.

    path: the file or folder they are from; model: what they are of, which only the checkpoints
    of this project say.
    """

    path: Path
    state: State
    model: TransformerConfig | None = None

    @property
    def is_of_dit(self) -> bool:
        """Whether they are known to be a DiT's."""
        return self.model is not None and self.model.learns_sigma


def read_weights(path: Path, which: str) -> Found:
    """The weights of a run's newest checkpoint, of a checkpoint, or of a file.

    which: `ema` or `model`, where there are both. Raises WeightsError if they cannot be had.
    """
    if not path.exists():
        raise WeightsError(f"There is no {path}, from which weights are to be read.")
    if path.is_dir():
        source = _checkpoint_at(path)
        with reading(source.folder, WeightsError):
            return Found(source.folder, source.weights(which), source.model)
    with reading(path, WeightsError):
        content = _part(read_weight_file(path), which, path)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors of a model, but {_listed(content)}.")
    return Found(path, own_names(state))


def _checkpoint_at(folder: Path) -> Checkpoint:
    """The checkpoint that a folder is, or the newest one of the run that it is."""
    if (folder / "state.json").is_file():
        return Checkpoint(folder)
    newest = checkpoint.latest(folder)
    if newest is None:
        raise WeightsError(
            f"{folder} is neither a checkpoint nor a run that has one",
            remedy=(
                "Set train.init_from to a run, to one of its checkpoints/step-..., or to a file."
            ),
        )
    checkpoint.check_whole(newest)
    return newest


def _part(content: Any, which: str, path: Path) -> Mapping[Any, Any]:
    """The weights in a file: one of its entries, or all of it."""
    if not isinstance(content, Mapping):
        raise TypeError(f"it holds one {type(content).__name__}")
    entries = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    if not entries:
        return content
    if which not in entries:
        raise WeightsError(
            f"{path} has no weights {which!r}, but {_listed(content)}",
            remedy=(
                "Choose `ema` or `model`, whichever it has (train.init_weights, or --weights)."
            ),
        )
    return entries[which]


def _listed(content: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(map(str, content))[:8]) or "nothing"
