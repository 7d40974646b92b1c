"""Which weights a network has: where they come from, that they are all there, and their digest."""

import hashlib
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from stages.encode.networks.published_networks import read_checkpoint
from stages.encode.networks.registry import EncoderError, EncoderSpec
from stages.packages import needs
from stages.weight_files import READING_ERRORS

State: TypeAlias = dict[str, Tensor]

PATCHES = "patch_embed.proj.weight"
# What stands for the digest of random weights, which no cached tensor is made with.
UNTRAINED = "untrained"


def load_network(spec: EncoderSpec, input_size: int, weights: Path | None) -> nn.Module:
    """An encoder's network with its weights: of a local file, of a package, or of timm's hub.

    Raises EncoderError if they cannot be had, or if a tensor of the network is not among them.
    """
    if weights is not None:
        network = create_network(spec, input_size)
        _copy_from_file(network, weights)
        return network
    if spec.packaged is not None:
        network = create_network(spec, input_size, num_classes=1000)
        _copy_by_position(network, _packaged_file(*spec.packaged))
        return network
    if spec.unpublished is not None:
        raise EncoderError(f"{spec.unpublished}. Set `weights` of the encoder to a local file.")
    return _from_hub(spec, input_size)


def create_network(spec: EncoderSpec, input_size: int, **arguments: Any) -> nn.Module:
    """An encoder's network as timm makes it: with random weights, unless `pretrained`."""
    from stages.vision import timm  # seconds: only where an encoder is used

    arguments = {"num_classes": 0, **spec.arguments, **arguments}
    if spec.sizing == "built":
        arguments["img_size"] = input_size
    network: nn.Module = timm.create_model(spec.timm_model, **arguments)
    return network


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of a model's tensors as loaded: names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _from_hub(spec: EncoderSpec, input_size: int) -> nn.Module:
    from stages.encode.networks.hub import HubError

    try:
        _require_weights(spec.timm_model)
        # Only if it keeps its own head does timm insist on every tensor.
        network = create_network(spec, input_size, pretrained=True, num_classes=None)
    except HubError as error:
        told = error.told("Where there is no network, set `weights` of the encoder to a local file")
        raise EncoderError(f"Cannot load {spec.timm_model} from timm's hub: {told}") from error
    except READING_ERRORS as error:
        raise EncoderError(
            f"Cannot load {spec.timm_model} from timm's hub: {error!r}",
            remedy="Where there is no network, set `weights` of the encoder to a local file.",
        ) from error
    cast("Any", network).reset_classifier(0)
    return network


def _require_weights(model: str) -> None:
    """Raise HubError if a model's weights are not here and the hub does not answer."""
    from stages.encode.networks.hub import has_weights, require_hub
    from stages.vision import timm

    config = timm.models.get_pretrained_cfg(model)
    # A few models are not on the hub, but at an address of their own.
    repo = config.hf_hub_id if config is not None else None
    if config is not None and repo and not has_weights(repo):
        require_hub(repo, [config.hf_hub_filename or "model.safetensors"])


def _copy_from_file(network: nn.Module, path: Path) -> None:
    """Load a checkpoint that timm can convert; every tensor of the network has to be in it."""
    own, published = network.state_dict(), read_checkpoint(path)
    if PATCHES in own and PATCHES in published and published[PATCHES].ndim == 4:
        # timm would resample patches of another size, which are those of another network.
        _check_shape(PATCHES, published, own, path)
    state = _converted(published, network, path)
    if lacking := [name for name in own if name not in state]:
        raise EncoderError(
            f"{path} holds other weights: {len(lacking)} of {len(own)} tensors of the encoder are "
            f"not in it, {lacking[0]} among them."
        )
    for name in own:
        _check_shape(name, state, own, path)
    network.load_state_dict({name: state[name] for name in own})


def _check_shape(name: str, found: State, expected: State, path: Path) -> None:
    if found[name].shape != expected[name].shape:
        raise EncoderError(
            f"{path} holds the weights of another network: {name} is "
            f"{list(found[name].shape)} there, expected {list(expected[name].shape)}."
        )


def _converted(state: State, network: nn.Module, path: Path) -> State:
    """The names of timm for published ones, and positions resampled to the network's grid."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(state, network)) if convert else state
    except Exception as error:  # what fails depends on what the other network looks like
        raise EncoderError(
            f"{path} holds other weights than those of a {type(network).__name__}: {error!r}."
        ) from error


def _packaged_file(package: str, file: str) -> Path:
    try:
        return Path(str(files(package) / file))
    except ModuleNotFoundError as error:
        raise EncoderError(f"The encoder {needs(package)}") from error


def _copy_by_position(network: nn.Module, path: Path) -> None:
    """Copy tensors that were saved in the network's order under other names."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    own = network.state_dict()
    network.load_state_dict(dict(zip(own, saved.values(), strict=True)))
