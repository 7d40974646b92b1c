"""Several processes, one model: whole in each (DDP), or in parts (FSDP2)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from stages.model.transformer import Transformer
from stages.placement import Placement
from stages.train.precision import HALF_PRECISIONS


def shard(model: Transformer, place: Placement, precision: str) -> None:
    """Leave each process a part of every parameter; blocks are whole while they compute.

    With half precision their weights travel in it: autocast would round them just the same.
    """
    mesh = init_device_mesh(place.device.type, (place.world,))
    half = MixedPrecisionPolicy(
        param_dtype=HALF_PRECISIONS.get(precision),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=half)
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


def compile_blocks(model: Transformer, wanted: bool | str, device: torch.device) -> None:
    """Compile the parts of a model one by one, where equal blocks share their code.

    wanted: whether to; `auto` compiles on GPUs.
    """
    if wanted is True or (wanted == "auto" and device.type == "cuda"):
        # The precision is a setting; what the compiler would rather have is none of its business.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        lists = (part for part in model.children() if isinstance(part, nn.ModuleList))
        for part in (*chain.from_iterable(lists), model.final_layer):
            part.compile()
