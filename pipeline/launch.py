"""Where a process runs: its device, and its place among the processes of `torchrun`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cache.errors import RepaCacheError
from stages.placement import Placement


class DeviceError(RepaCacheError):
    """The device in the configuration is not there."""


def find_device(name: str) -> torch.device:
    """The device of this name; `auto` takes the first accelerator, or the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found is not None else "cpu"
    local = os.environ.get("LOCAL_RANK")
    try:
        device = torch.device(f"{name}:{local}" if name == "cuda" and local else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"There is no device {name!r} here: {error}") from error
    return device


@contextmanager
def placement(device_name: str) -> Iterator[Placement]:
    """Where this process works; joins the others of `torchrun` for as long as the block runs."""
    device, world = find_device(device_name), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Placement(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Placement(device, torch.distributed.get_rank(), world)
    finally:
        torch.distributed.destroy_process_group()
