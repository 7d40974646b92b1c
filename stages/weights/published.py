"""Weights of a run, a checkpoint or a published file, and the layouts of published code.

Published checkpoints of SiT, DiT and REPA are a state dict, or what their training writes: one
for each of "ema" and "model", beside the optimiser. P a patch's side, C latent channels, W the
transformer's width.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cache.errors import RepaCacheError
from stages.model.blocks import time_frequencies
from stages.model.transformer_config import TransformerConfig
from stages.weight_files import read_weight_file, reading
from stages.weights import checkpoint
from stages.weights.checkpoint import Checkpoint

State: TypeAlias = dict[str, Tensor]

# The layers whose last axis of outputs is [P, P, channels], channels fastest.
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")
PROJECTORS = "projectors."
# Of SRA's prediction heads here, and of the one in its own code.
PREDICTION_HEADS = "ap_head"
# What iREPA's code calls the layers of a projector, which REPA's only numbers.
LAYER = "projection_layer"
# Of ReDi, which has one at most and gives it no number.
PROJECTOR = "projector."
# The layer behind the sinusoids of a time: columns of their cosines, then of their sines.
TIMES = "t_embedder.mlp.0.weight"
# Of JiT's code: before all names, and what its checkpoints call moving averages.
NET, AVERAGES = "net.", {"ema": "model_ema1", "ema2": "model_ema2"}
# What PixelREPA trains beside JiT, the frozen encoder among it.
BESIDE_JIT = (*("mask_token", "masked_transformer_adapter.", "repa_model.", "scale.", "de_scale."),)
# What takes in a class token, in REG's code: from its features to the width.
CLASS_TOKENS = "cls_projectors2.weight"


class WeightsError(RepaCacheError):
    """Weights cannot be read, written so, or are not those of the model."""


@dataclass(frozen=True)
class Found:
    """Weights under the names of this project.

    path: the file or folder they are from; model: what they are of, which only the checkpoints
    of this project say.
    """

    path: Path
    state: State
    model: TransformerConfig | None = None


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
    if which not in entries and AVERAGES.get(which) in entries:
        return entries[AVERAGES[which]]
    if which not in entries:
        raise WeightsError(
            f"{path} has no weights {which!r}, but {_listed(content)}",
            remedy=(
                "Choose `ema`, `model` or `ema2`, whichever it has (train.init_weights, --weights)."
            ),
        )
    return entries[which]


def _listed(content: Mapping[Any, Any]) -> str:
    return ", ".join(sorted(map(str, content))[:8]) or "nothing"


def own_names(state: Mapping[str, Tensor]) -> State:
    """The names of this project, which are those that REPA, SiT and DiT publish.

    Without the prefixes of parallel training, compilation and JiT's code, without what PixelREPA
    trains beside the model, and with the blocks behind the projectors (`decoder_blocks`, in older
    checkpoints of REPA) counted on from those before.
    """
    plain = {
        name.replace("_orig_mod.", "").removeprefix("module.").removeprefix(NET): tensor
        for name, tensor in state.items()
    }
    plain = _without(plain, *BESIDE_JIT)
    before = count_below("blocks.", plain)
    return {
        re.sub(
            r"^decoder_blocks\.(\d+)\.", lambda match: f"blocks.{before + int(match[1])}.", name
        ): tensor
        for name, tensor in plain.items()
    }


def count_below(prefix: str, state: Mapping[str, Tensor]) -> int:
    """The number of modules in a list whose tensors begin with a prefix."""
    return len({name.split(".")[1] for name in state if name.startswith(prefix)})


def without_sigma(state: State, patch: int) -> State:
    """The head's first C of 2C channels: published SiT computes the others and drops them."""
    heads = {name: state[name].unflatten(0, (patch**2, 2, -1))[:, 0].flatten(0, 1) for name in HEAD}
    return {**state, **heads}


def with_sigma(state: State, patch: int) -> State:
    """The head with C channels of zeros behind each patch cell's C, as published SiT has them."""
    cells = {name: state[name].unflatten(0, (patch**2, -1)) for name in HEAD}
    heads = {
        name: torch.cat([kept, torch.zeros_like(kept)], dim=1).flatten(0, 1)
        for name, kept in cells.items()
    }
    return {**state, **heads}


def with_time_reversed(state: State) -> State:
    """The same field with its direction of time turned round: v(x, t) becomes -v(x, 1 - t).

    SiT's own code has noise at time 0 and data at 1, and the velocity from noise to data. As
    cos((1 - t) f) = cos(f) cos(t f) + sin(f) sin(t f), and likewise for the sine, a rotation of
    weights does it, which is its own inverse.
    """
    weight = state[TIMES]
    cosines, sines = weight.double().chunk(2, dim=1)
    frequencies = time_frequencies(weight.device).double()
    cos, sin = frequencies.cos(), frequencies.sin()
    turned = torch.cat([cosines * cos + sines * sin, cosines * sin - sines * cos], dim=1)
    precision = torch.promote_types(weight.dtype, torch.float32)
    return {**state, TIMES: turned.to(precision), **{name: -state[name] for name in HEAD}}


def of_redi(state: State) -> State:
    """ReDi's weights under the names and in the direction of time of this project."""
    return _renamed(with_time_reversed(state), PROJECTOR, f"{PROJECTORS}0.")


def as_redi(state: State) -> State:
    """Weights as ReDi's code has them. Raises WeightsError for more than one projector."""
    if (count := count_below(PROJECTORS, state)) > 1:
        raise WeightsError(f"ReDi's code has one projector, and there are {count}.")
    return _renamed(with_time_reversed(state), f"{PROJECTORS}0.", PROJECTOR)


def _renamed(state: State, prefix: str, other: str) -> State:
    return {
        f"{other}{name.removeprefix(prefix)}" if name.startswith(prefix) else name: tensor
        for name, tensor in state.items()
    }


def as_jit(state: State) -> State:
    """Weights by the names of JiT's code, without projectors."""
    return {f"{NET}{name}": tensor for name, tensor in without_projectors(state).items()}


def without_projectors(state: Mapping[str, Tensor]) -> State:
    """What a sampler needs: all but the projectors and prediction heads."""
    return _without(state, PROJECTORS, PROJECTOR, PREDICTION_HEADS)


def without_prediction_heads(state: Mapping[str, Tensor]) -> State:
    """What REPA's code knows."""
    return _without(state, PREDICTION_HEADS)


def _without(state: Mapping[str, Tensor], *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}
