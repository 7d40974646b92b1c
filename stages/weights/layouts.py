"""Layouts of published checkpoints: other names and shapes of the same weights, and back.

P a patch's side, C latent channels, W the transformer's width.
"""

import re
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from stages.model.blocks import time_frequencies

State: TypeAlias = dict[str, Tensor]

# The layers whose last axis of outputs is [P, P, channels], channels fastest.
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")
PROJECTORS = "projectors."
# The layer behind the sinusoids of a time: columns of their cosines, then of their sines.
TIMES = "t_embedder.mlp.0.weight"


def own_names(state: Mapping[str, Tensor]) -> State:
    """The names of this project, which are those that REPA, SiT and DiT publish.

    Without the prefixes of parallel training and compilation, and with the blocks behind the
    projectors (`decoder_blocks`, in older checkpoints of REPA) counted on from those before.
    """
    plain = {
        name.replace("_orig_mod.", "").removeprefix("module."): tensor
        for name, tensor in state.items()
    }
    before = count_below("blocks.", plain)
    return {
        re.sub(
            r"^decoder_blocks\.(\d+)\.",
            lambda match: f"blocks.{before + int(match[1])}.",
            name,
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


def without_projectors(state: Mapping[str, Tensor]) -> State:
    """What a sampler needs: all but the projectors."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(PROJECTORS)}
