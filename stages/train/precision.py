"""In which precision a step computes, and whether twice the same."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from stages.train.train_settings import TrainSettings

HALF_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def precision_of(settings: TrainSettings, device: torch.device) -> str:
    """The precision of training on a device; `auto` is bfloat16 on GPUs that have it."""
    if settings.precision != "auto":
        return settings.precision
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Compute matrix products in half precision; weights, norms and sums stay in float32."""
    if precision not in HALF_PRECISIONS:
        return nullcontext()
    return torch.autocast(device.type, HALF_PRECISIONS[precision])


def make_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales losses so that gradients do not vanish in float16; does nothing otherwise."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


@contextmanager
def arithmetic(precision: str, *, deterministic: bool) -> Iterator[None]:
    """Float32 products in TF32 or not; if asked for, kernels that give the same bits each time."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = (
        matmul.allow_tf32,
        cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        memory.fill_uninitialized_memory,
    )
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
        torch.use_deterministic_algorithms(deterministic)
        # Nothing here reads memory that it has not written.
        memory.fill_uninitialized_memory = False
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, is_deterministic, fills = before
        torch.use_deterministic_algorithms(is_deterministic)
        memory.fill_uninitialized_memory = fills
