"""Where a process runs: its device, and its place among the processes of `torchrun`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.placement import Placement, find_device
from stages.processes import world_size


@contextmanager
def placement(device_name: str) -> Iterator[Placement]:
    """Where this process works; joins the others of `torchrun` for as long as the block runs."""
    device, world = find_device(device_name), world_size()
    if world == 1:
        yield Placement(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Processes also agree on things that are in no GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend)
    try:
        yield Placement(device, torch.distributed.get_rank(), world)
    finally:
        torch.distributed.destroy_process_group()
