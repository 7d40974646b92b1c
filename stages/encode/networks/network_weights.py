"""The weights of a network: that they are all there, and their digest."""

import hashlib
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from stages.encode.networks.registry import EncoderError

State: TypeAlias = dict[str, Tensor]

# What stands for the digest of random weights, which no cached tensor is made with.
UNTRAINED = "untrained"


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of a model's tensors as loaded: names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def copy_state(network: nn.Module, state: State, path: Path) -> None:
    """Copy the tensors of a file to a network; every tensor of the network has to be among them.

    Raises EncoderError for one that is not, or that has another shape.
    """
    own = network.state_dict()
    if lacking := [name for name in own if name not in state]:
        raise EncoderError(
            f"{path} holds other weights: {len(lacking)} of {len(own)} tensors of the encoder are "
            f"not in it, {lacking[0]} among them."
        )
    for name in own:
        check_shape(name, state, own, path)
    network.load_state_dict({name: state[name] for name in own})


def check_shape(name: str, found: State, expected: State, path: Path) -> None:
    """Raise EncoderError unless a tensor of a file has the shape that a network expects."""
    if found[name].shape != expected[name].shape:
        raise EncoderError(
            f"{path} holds the weights of another network: {name} is "
            f"{list(found[name].shape)} there, expected {list(expected[name].shape)}."
        )
