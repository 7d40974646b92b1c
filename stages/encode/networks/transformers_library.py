"""transformers' networks: made, given weights and run to their last hidden state.

B images, S their side in px, T tokens on a square grid, P class and register tokens before them,
D features.
"""

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.encode.networks.frozen_networks import read_checkpoint, tensor_bytes
from stages.encode.networks.registry import EncoderError, EncoderSpec
from stages.encode.networks.transformers_index import (
    ARCHITECTURES,
    CONFIG,
    PREPROCESSING,
    model_folder,
)
from stages.packages import importing_quietly, is_installed, needs
from stages.weight_files import READING_ERRORS

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")


def create_network(spec: EncoderSpec, input_size: int) -> nn.Module:  # noqa: ARG001 - takes any
    """A network of the configuration, with random weights."""
    config, kind = _configured(spec)
    network: nn.Module = kind(config, **ARCHITECTURES[spec.model].arguments)
    return network


def load_network(spec: EncoderSpec, input_size: int, weights: Path | None) -> nn.Module:  # noqa: ARG001
    """A network with the weights that lie beside its configuration, or those of a local file.

    Raises EncoderError if they cannot be had, or if a tensor of the network is not among them.
    """
    config, kind = _configured(spec)
    assert spec.location is not None, "found by its location"
    where = str(weights or spec.location)
    folder = None if weights else weights_folder(spec.location, CONFIG, PREPROCESSING)
    state = read_checkpoint(weights) if weights else None
    options = {"config": config, "state_dict": state, **ARCHITECTURES[spec.model].arguments}
    network: nn.Module = load_whole(kind, folder, where, spec.model, "encoder", **options)
    return network


def load_whole(
    kind: Any, folder: Path | None, where: str, model: str, part: str, **options: object
) -> Any:
    """A network of a class of transformers in float32, all of whose weights are found.

    where: what errors name as the place of the weights; model, part: as what they are read, and
    what of it is used. Raises EncoderError if they cannot be read, or if one is not there.
    """
    try:
        with importing_quietly():
            network, found = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
    except READING_ERRORS as error:
        raise EncoderError(f"{where} cannot be loaded as a {model}: {error!r}") from error
    if lacking := sorted(found["missing_keys"]):
        raise EncoderError(
            f"{where} holds other weights: {len(lacking)} of {len(network.state_dict())} tensors "
            f"of the {part} are not in it, {lacking[0]} among them."
        )
    return network


def weights_sha256(network: nn.Module) -> str:
    """The sha256 of a network's tensors without their names, which change with the library."""
    digests = (hashlib.sha256(b) for b in map(tensor_bytes, network.state_dict().values()))
    return hashlib.sha256("".join(sorted(d.hexdigest() for d in digests)).encode()).hexdigest()


def run_to_layer(network: Any, inputs: Tensor, spec: EncoderSpec) -> tuple[Tensor, Tensor]:
    """Prefix tokens [B, P, D] and patch tokens [B, T, D] of the last hidden state.

    inputs: [B, 3, S, S], normalised.
    """
    places = (inputs.shape[-1] // spec.stride) ** 2
    accepted = inspect.signature(network.forward).parameters
    arguments: dict[str, Any] = {}
    if "interpolate_pos_encoding" in accepted:
        arguments["interpolate_pos_encoding"] = True
    if "noise" in accepted:
        # Patches are kept in the order of this.
        order = torch.arange(places, dtype=torch.float32, device=inputs.device)
        arguments["noise"] = order.expand(len(inputs), -1)
    hidden = network(inputs, **arguments).last_hidden_state
    prefixes = hidden.shape[1] - places
    return hidden[:, :prefixes], hidden[:, prefixes:]


def _configured(spec: EncoderSpec) -> tuple[Any, Any]:
    """The configuration of an encoder, and the class of its network."""
    transformers = import_transformers("An encoder of transformers")
    try:
        config = transformers.AutoConfig.for_model(spec.model, **spec.arguments)
        return config, transformers.AutoModel._model_mapping[type(config)]  # noqa: SLF001
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(
            f"{spec.location}: transformers {transformers.__version__} has no {spec.model} of this "
            f"configuration ({error})"
        ) from error


def import_transformers(subject: str) -> Any:
    """The library, which says no more than it has to. subject: what needs it.

    Raises EncoderError if it is not installed.
    """
    if not is_installed("transformers"):
        raise EncoderError(f"{subject} {needs('transformers')}")
    import transformers

    import stages.vision  # noqa: F401 - what transformers imports has to be imported so

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def weights_folder(location: str, *files: tuple[str, ...], beside: tuple[str, ...] = ()) -> Path:
    """The folder with a model's weights, which may be in several files, and with others of it."""
    folder = model_folder(location, *files, WEIGHTS, beside=beside)
    if not (folder / INDEX).is_file():
        return folder
    parts = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()
    return model_folder(location, *files, *((part,) for part in sorted(set(parts))))
