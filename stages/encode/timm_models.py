"""Encoders that are not in the registry: any model of timm that gives a square grid of features.

What the registry says of an encoder is learnt here from timm's configuration of the weights, and
from the shapes that the model gives on torch's meta device, which computes nothing else.
"""

import difflib
from dataclasses import replace
from functools import cache
from math import isqrt
from typing import Any

import torch

from stages.encode.encoders import ENCODERS, EncoderError, EncoderSpec, Sizing
from stages.encode.features import run_to_layer
from stages.encode.weights import create_network
from stages.vision import timm

# Of convolutional networks, whose published size need not be a multiple of their stride.
PROBED_SIZE = 256


@cache
def timm_encoder(name: str) -> EncoderSpec:
    """The encoder that timm calls so, at the input size of its published weights.

    Raises EncoderError if timm knows no such model, or if it gives no square grid of features.
    """
    config = _configuration(name)
    size = config.input_size[-1]
    spec = EncoderSpec(
        name,
        stride=1,
        input_size=size,
        mean=tuple(config.mean),
        std=tuple(config.std),
        order="resize, normalise",
        unpublished=None if config.has_weights else f"timm publishes no weights of {name}",
    )
    scaled: Sizing = "built" if config.fixed_input_size else "any"
    sizings: dict[Sizing, list[int]] = {
        scaled: [size, 2 * size] if config.fixed_input_size else [PROBED_SIZE, 2 * PROBED_SIZE],
        "native": [size],
    }
    for sizing, sizes in sizings.items():
        probed = [_probe(replace(spec, sizing=sizing), size) for size in sizes]
        if len(set(probed)) == 1 and probed[0] is not None:
            stride, has_class_token = probed[0]
            return replace(spec, stride=stride, has_class_token=has_class_token, sizing=sizing)
    raise EncoderError(f"{name} gives no square grid of features a whole number of px apart")


def _configuration(name: str) -> Any:
    published = timm.list_models(pretrained=True)
    if name not in published and name not in timm.list_models():
        close = difflib.get_close_matches(name, [*ENCODERS, *published], n=1, cutoff=0.5)
        known = f"choose from {', '.join(ENCODERS)}, or a model of timm"
        hint = f"did you mean {close[0]!r}?" if close else known
        raise EncoderError(f"unknown name {name!r}; {hint}")
    return timm.models.get_pretrained_cfg(name, allow_unregistered=False)


def _probe(spec: EncoderSpec, size: int) -> tuple[int, bool] | None:
    """Pixels per token and whether there is a class token; None if inputs of this size fail."""
    try:
        with torch.device("meta"), torch.inference_mode():
            network: Any = create_network(spec, size).eval()
            prefix, tokens = run_to_layer(network, torch.empty(1, 3, size, size), spec.layer)
    except Exception:  # each architecture has its own way to refuse a size
        return None
    side = isqrt(tokens.shape[1])
    if side == 0 or side**2 != tokens.shape[1] or size % side:
        return None
    has_class_token = prefix.shape[1] > 0 and getattr(network, "cls_token", None) is not None
    return size // side, has_class_token
