"""timm's networks: made, given weights and run to a layer, and what timm says of its models.

B images, S their side in px, T tokens on a square grid, P class and register tokens before them,
D features.
"""

import sys
from importlib.resources import files
from math import isqrt
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from stages.encode.networks.frozen_networks import (
    State,
    check_shape,
    copy_state,
    read_checkpoint,
    weights_sha256,
)
from stages.encode.networks.hub import HubError, has_weights, require_hub
from stages.encode.networks.registry import EncoderError, EncoderSpec, Sizing
from stages.encode.networks.timm_index import TimmModel, TimmNames, Unusable
from stages.packages import needs
from stages.vision import timm
from stages.weight_files import READING_ERRORS

__all__ = ["create_network", "load_network", "run_to_layer", "weights_sha256"]

PATCHES = "patch_embed.proj.weight"
# Of convolutional networks, whose published size need not be a multiple of their stride.
PROBED_SIZE = 256


def load_network(spec: EncoderSpec, input_size: int, weights: Path | None) -> nn.Module:
    """An encoder's network with its weights: of a local file, of a package, or of timm's hub.

    Raises EncoderError if they cannot be had, or if a tensor of the network is not among them.
    """
    if weights is not None:
        network = create_network(spec, input_size)
        _copy_from_file(network, weights)
        return network
    if spec.packaged is not None:
        return _packaged(spec, input_size, *spec.packaged)
    if spec.unpublished is not None:
        raise EncoderError(f"{spec.unpublished}. Set `weights` of the encoder to a local file.")
    return _from_hub(spec, input_size)


def create_network(spec: EncoderSpec, input_size: int, **arguments: Any) -> nn.Module:
    """An encoder's network as timm makes it: with random weights, unless `pretrained`."""
    arguments = {"num_classes": 0, **spec.arguments, **arguments}
    if spec.sizing == "built":
        arguments["img_size"] = input_size
    network: nn.Module = timm.create_model(spec.model, **arguments)
    return network


def _from_hub(spec: EncoderSpec, input_size: int) -> nn.Module:
    try:
        _require_weights(spec.model)
        # Only if it keeps its own head does timm insist on every tensor.
        network = create_network(spec, input_size, pretrained=True, num_classes=None)
    except HubError as error:
        told = error.told("Where there is no network, set `weights` of the encoder to a local file")
        raise EncoderError(f"Cannot load {spec.model} from timm's hub: {told}") from error
    except READING_ERRORS as error:
        raise EncoderError(
            f"Cannot load {spec.model} from timm's hub: {error!r}. "
            "Where there is no network, set `weights` of the encoder to a local file."
        ) from error
    cast("Any", network).reset_classifier(0)
    return network


def _require_weights(model: str) -> None:
    """Raise HubError if a model's weights are not here and the hub does not answer."""
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
        check_shape(PATCHES, published, own, path)
    copy_state(network, _converted(published, network, path), path)


def _converted(state: State, network: nn.Module, path: Path) -> State:
    """The names of timm for published ones, and positions resampled to the network's grid."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(state, network)) if convert else state
    except Exception as error:  # what fails depends on what the other network looks like
        raise EncoderError(
            f"{path} holds other weights than those of a {type(network).__name__}: {error!r}."
        ) from error


def _packaged(spec: EncoderSpec, input_size: int, package: str, file: str) -> nn.Module:
    """A network with tensors that were saved in its order, under other names."""
    network = create_network(spec, input_size, num_classes=1000)
    try:
        path = str(files(package) / file)
    except ModuleNotFoundError as error:
        raise EncoderError(f"The encoder {needs(package)}") from error
    saved = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), saved.values(), strict=True)))
    return network


def run_to_layer(network: Any, inputs: Tensor, spec: EncoderSpec) -> tuple[Tensor, Tensor]:
    """Prefix tokens [B, P, D] and patch tokens [B, T, D] of a network at its layer.

    inputs: [B, 3, S, S], normalised. Of a feature map every place is a patch token.
    """
    if spec.layer == "before norm":
        ((tokens, prefix),) = network.forward_intermediates(
            inputs, indices=1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        return prefix, tokens
    if spec.layer == "norm":
        features = network.forward_features(inputs)
        if features.ndim == 3:
            prefixes = getattr(network, "num_prefix_tokens", 0)
            return features[:, :prefixes], features[:, prefixes:]
        has_channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        tokens = features.flatten(1, 2) if has_channels_last else features.flatten(2).mT
        return tokens[:, :0], tokens
    (stage,) = network.forward_intermediates(
        inputs, indices=[spec.layer], stop_early=True, intermediates_only=True
    )
    tokens = stage.flatten(2).mT
    return tokens[:, :0], tokens


def model_names() -> TimmNames:
    """The names of all models."""
    published = timm.list_models(pretrained=True)
    others = sorted({*timm.list_models()} - {*published})
    return TimmNames(published=tuple(published), others=tuple(others))


def probe_model(name: str) -> TimmModel | Unusable:
    """What a model gives, or that it gives no square grid of features."""
    config: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    size = config.input_size[-1]
    scaled: Sizing = "built" if config.fixed_input_size else "any"
    sizings: dict[Sizing, list[int]] = {
        scaled: [size, 2 * size] if config.fixed_input_size else [PROBED_SIZE, 2 * PROBED_SIZE],
        "native": [size],
    }
    for sizing, sizes in sizings.items():
        spec = EncoderSpec(name, stride=1, input_size=size, sizing=sizing)
        probed = [_probe(spec, size) for size in sizes]
        if len(set(probed)) == 1 and probed[0] is not None:
            stride, has_class_token = probed[0]
            return TimmModel(
                stride=stride,
                input_size=size,
                mean=tuple(config.mean),
                std=tuple(config.std),
                has_class_token=has_class_token,
                sizing=sizing,
                has_weights=bool(config.has_weights),
            )
    return Unusable(problem="gives no square grid of features a whole number of px apart")


def _probe(spec: EncoderSpec, size: int) -> tuple[int, bool] | None:
    """Pixels per token and whether there is a class token; None if inputs of this size fail."""
    try:
        with torch.device("meta"), torch.inference_mode():
            network: Any = create_network(spec, size).eval()
            prefix, tokens = run_to_layer(network, torch.empty(1, 3, size, size), spec)
    except Exception:  # each architecture has its own way to refuse a size
        return None
    side = isqrt(tokens.shape[1])
    if side == 0 or side**2 != tokens.shape[1] or size % side:
        return None
    has_class_token = prefix.shape[1] > 0 and getattr(network, "cls_token", None) is not None
    return size // side, has_class_token
