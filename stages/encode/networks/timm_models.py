"""What timm says of its models, for `timm_index`, which keeps it.

What the registry says of an encoder is learnt here from timm's configuration of the weights, and
from the shapes that the model gives on torch's meta device, which computes nothing else.
"""

from math import isqrt
from typing import Any

import torch

from stages.encode.networks.registry import EncoderSpec, Sizing
from stages.encode.networks.timm_index import TimmModel, TimmNames, Unusable
from stages.encode.networks.timm_library import create_network, run_to_layer
from stages.vision import timm

# Of convolutional networks, whose published size need not be a multiple of their stride.
PROBED_SIZE = 256


def names() -> TimmNames:
    """The names of all models."""
    published = timm.list_models(pretrained=True)
    others = sorted({*timm.list_models()} - {*published})
    return TimmNames(published=tuple(published), others=tuple(others))


def model(name: str) -> TimmModel | Unusable:
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
