"""Tensors of which each process may hold a part."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


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
