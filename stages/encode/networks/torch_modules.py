"""Networks that are a class of torch alone, with a file of weights.

Such an encoder is an entry of the registry whose library is `torch` and whose model is the class,
as `package.module:Class`. Its instances are called with inputs [B, 3, S, S], and give prefix
tokens [B, P, D], the class token first, and patch tokens [B, T, D] on a square grid, row by row.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from stages.encode.networks.frozen_networks import copy_state, read_checkpoint, weights_sha256
from stages.encode.networks.registry import EncoderError, EncoderSpec

__all__ = ["create_network", "load_network", "run_to_layer", "weights_sha256"]


def create_network(spec: EncoderSpec, input_size: int) -> nn.Module:
    """An instance of the class, made with the entry's arguments, and `img_size` if it is built."""
    module, _, name = spec.model.partition(":")
    arguments: dict[str, Any] = dict(spec.arguments)
    if spec.sizing == "built":
        arguments["img_size"] = input_size
    return cast("nn.Module", getattr(import_module(module), name)(**arguments))


def load_network(spec: EncoderSpec, input_size: int, weights: Path | None) -> nn.Module:
    """An instance with the tensors of a local file. Raises EncoderError if they are others."""
    if weights is None:
        reason = spec.unpublished or f"{spec.model} comes without weights"
        raise EncoderError(f"{reason}. Set `weights` of the encoder to a local file.")
    network = create_network(spec, input_size)
    copy_state(network, read_checkpoint(weights), weights)
    return network


def run_to_layer(network: Any, inputs: Tensor, spec: EncoderSpec) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - has one
    """Prefix tokens [B, P, D] and patch tokens [B, T, D], as the class gives them.

    inputs: [B, 3, S, S], normalised.
    """
    prefix, tokens = network(inputs)
    return prefix, tokens
