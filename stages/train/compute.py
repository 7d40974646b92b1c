"""How a step is computed: in which precision, whether twice the same, and by several processes.

Several processes have one model: whole in each (DDP), or in parts (FSDP2).
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from stages.float32 import float32_products
from stages.model.transformer import Transformer
from stages.placement import Placement
from stages.train.train_settings import RunError, TrainSettings

# What is not multiplied in float8 is in bfloat16.
HALF_PRECISIONS = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.bfloat16,
}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# The compiler's mode of that name without its own CUDA graphs: a step is one already.
COMPILERS: Mapping[bool | str, Mapping[str, Any]] = {
    "max-autotune": {"max_autotune": True, "coordinate_descent_tuning": True}
}
# On a GPU, torch 2.11 loses track of the padding of widths like 3,413 where blocks are recomputed.
RECOMPUTED: Mapping[str, Any] = {"comprehensive_padding": False}


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
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(deterministic)
        # Nothing here reads memory that it has not written.
        memory.fill_uninitialized_memory = False
        with float32_products(tf32=precision == "tf32"):
            yield
    finally:
        is_deterministic, fills = before
        torch.use_deterministic_algorithms(is_deterministic)
        memory.fill_uninitialized_memory = fills


def attention_of(kind: str) -> AbstractContextManager[None]:
    """Compute attention by kernels of one kind; `auto` leaves it to torch."""
    return nullcontext() if kind == "auto" else sdpa_kernel(KERNELS[kind])


def check_attention(
    kind: str, precision: str, device: torch.device, *, is_masked: bool = False
) -> None:
    """Raise RunError if a device has no such kernels in a precision, or none that take a mask."""
    lacking = {"flash", "cudnn"} if precision not in HALF_PRECISIONS else set()
    masking = {"flash"} if is_masked else set()
    if kind in (lacking | masking if device.type == "cuda" else {"cudnn", "efficient"}):
        told = f"{precision}, without the padding of captions," if is_masked else precision
        raise RunError(
            f"{kind!r} computes no attention in {told} on {device.type}",
            where="train.compute.attention",
            remedy='Set it to "auto", or choose another train.precision or train.device.',
        )


def shard(model: Transformer, place: Placement, precision: str, *, reshard: bool) -> None:
    """Leave each process a part of every parameter; blocks are whole while they compute.

    With half precision their weights travel in it: autocast would round them just the same.
    reshard: whether a block gives up the others' parts behind its forward pass, and gathers them
    again for its backward pass, if it has one.
    """
    # Nobody changes what the model gives in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh(place.device.type, (place.world,))
    half = MixedPrecisionPolicy(
        param_dtype=HALF_PRECISIONS.get(precision),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=half, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)


def replicate(model: nn.Module, place: Placement) -> nn.Module:
    """The model whose gradients are averaged over all processes; sharded models do so already."""
    if place.world == 1 or isinstance(model, FSDPModule):
        return model
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


@contextmanager
def synchronised(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Average gradients in the last of several backward passes only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
    skips = isinstance(model, DistributedDataParallel) and not is_last
    with model.no_sync() if skips else nullcontext():  # type: ignore[operator]
        yield


def reshard(model: nn.Module) -> None:
    """Give up what is whole of a sharded model behind a forward pass that has no backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process may hold a part; all processes have to ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(target: Tensor, values: Tensor) -> None:
    """Copy a whole tensor, which every process has, into one that may be held in parts."""
    if isinstance(target, DTensor):
        values = distribute_tensor(
            values.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(values)


def compile_blocks(model: Transformer, wanted: bool | str, device: torch.device) -> None:
    """Compile the parts of a model one by one, where equal blocks share their code.

    wanted: whether to, and how; `auto` compiles on GPUs.
    """
    if wanted == "auto":
        wanted = device.type == "cuda"
    if wanted:
        # The precision is a setting; what the compiler would rather have is none of its business.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        lists = (part for part in model.children() if isinstance(part, nn.ModuleList))
        options = {**COMPILERS.get(wanted, {}), **(RECOMPUTED if model.recompute else {})}
        for part in (*chain.from_iterable(lists), model.final_layer):
            part.compile(options=options or None)
