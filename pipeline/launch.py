"""Where a process runs: its device, and its place among the processes of `torchrun`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from stages.failing import failing_together
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
    store, rank, world = next(rendezvous("env://"))
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    with failing_together(PrefixStore("failing", store)):
        yield Placement(device, rank, world)
    # Not after an error, when an exchange may be open that others will not end.
    torch.distributed.destroy_process_group()
