"""Where a process runs: its device, and its place among the processes of `torchrun`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from stages.failing import failing_together
from stages.placement import Placement, find_device
from stages.processes import ADDRESS, PORT, RANK, WORLD, LaunchError, world_size
from stages.progress import say


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
    store, rank = _join(backend, world)
    with failing_together(PrefixStore("failing", store)):
        yield Placement(device, rank, world)
    # Not after an error, when an exchange may be open that others will not end.
    torch.distributed.destroy_process_group()


def _join(backend: str, world: int) -> tuple[Store, int]:
    """Meet the other processes: what all of them share, and the number of this one.

    Raises LaunchError if that fails.
    """
    place = f"{os.environ[ADDRESS]}:{os.environ[PORT]}"
    if not torch.distributed.is_torchelastic_launched():
        say(
            f"process {os.environ[RANK]} of {world}: waiting for the others at {place}. If nobody "
            f"starts them, another launcher left {WORLD} behind: stop this, and unset {WORLD}"
        )
    before = signal.getsignal(signal.SIGINT)
    # torch waits without letting Python answer Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        store, rank, world = next(rendezvous("env://"))
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(f"The {world} processes cannot join at {place}: {reason}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    return store, rank
