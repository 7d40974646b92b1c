"""In which precision a frozen network computes.

B images.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from stages.encode.build_settings import Precision

Network: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]


def compute(network: Network, inputs: Tensor, precision: Precision) -> dict[str, Tensor]:
    """What a network gives for inputs [B, ...], as float32 tensors [B, ...] by name.

    With float16, matrix products and convolutions are in half precision, and images whose
    results are not finite, because a value passed 65504 on the way, are computed again in
    float32.
    """
    with exact_float32():
        if precision == "float32":
            return _as_float32(network(inputs))
        with torch.autocast(inputs.device.type, torch.float16):
            outputs = _as_float32(network(inputs))
        overflown = ~torch.stack([_are_finite(tensor) for tensor in outputs.values()]).all(0)
        if overflown.any():
            for name, exact in _as_float32(network(inputs[overflown])).items():
                outputs[name][overflown] = exact
        return outputs


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 in float32: torch lets cuDNN use TF32, which has 10 bits of precision."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _as_float32(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in outputs.items()}


def _are_finite(tensor: Tensor) -> Tensor:
    """Whether all values of an image are finite, [B]."""
    return tensor.isfinite().flatten(1).all(1)
