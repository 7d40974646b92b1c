"""Where a process of a run works."""

import ctypes
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from cache.errors import RepaCacheError
from cache.locking.holders import process_space
from cache.shared_memory import SharedMemory
from stages.processes import local_rank, local_world_size
from stages.progress import say

Found = TypeVar("Found")
# Of glibc's malloc.h: parameters of mallopt, whose values are of type int.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MOST_KEPT_BYTES = 2**31 - 1


class DeviceError(RepaCacheError):
    """The device in the configuration is not there."""


def named_device(name: str) -> torch.device:
    """The device that a name stands for; `auto` is the first accelerator, or the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found is not None else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"There is no device {name!r}: {error}") from error
    if device.type == "meta":
        raise DeviceError(f"The device {name!r} has shapes alone, and computes nothing.")
    return device


def find_device(name: str) -> torch.device:
    """The device of this name, which is there; a process of torchrun takes the GPU of its number.

    Raises DeviceError if it is not, or if it is one GPU for several processes.
    """
    device, local = named_device(name), local_rank()
    if device.type == "cuda" and local is not None:
        device = _gpu_of(local, name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"There is no device {name!r} here: {error}") from error
    if device.type == "cpu":
        _keep_freed_memory()
    return device


def _gpu_of(local: int, name: str) -> torch.device:
    """The GPU of a process of torchrun, by its number on this machine."""
    processes, gpus = local_world_size(), torch.cuda.device_count()
    if ":" in name and processes == 1:
        return torch.device(name)
    if ":" in name:
        raise DeviceError(
            f"The device {name!r} is one GPU, but {processes} processes run on this machine and "
            "need one each",
            remedy='Set it to "cuda" or "auto"; CUDA_VISIBLE_DEVICES chooses among GPUs.',
        )
    if 0 < gpus <= local:
        raise DeviceError(
            f"Process {local} of {processes} on {socket.gethostname()} has no GPU: there "
            f"are {gpus}",
            remedy=f"Start one process per GPU: torchrun --nproc-per-node {gpus}.",
        )
    return torch.device("cuda", local)


def _keep_freed_memory() -> None:
    """Have the C library keep the memory of tensors that are gone, for those that follow.

    By default it gives large blocks back, and the system clears their pages each time anew: a
    fifth of the time of training on a CPU, and a third of that of encoding.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)


@dataclass(frozen=True)
class Placement:
    """rank of world processes, on a device."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def agreed(found: Found, place: Placement) -> Found:
    """What rank 0 has found; all processes of a run have to ask together."""
    told = [found]
    if place.world > 1:
        torch.distributed.broadcast_object_list(told)
    return told[0]


def barrier(place: Placement) -> None:
    """Wait until all processes of a run are here."""
    if place.world > 1:
        torch.distributed.barrier()


@contextmanager
def machine_memory(place: Placement) -> Iterator[SharedMemory | None]:
    """What the processes of a run on one machine share memory by while the block runs.

    None for a process without others on its machine. All of a run have to ask together, and those
    of a machine then do the same.
    """
    if place.world == 1:
        yield None
        return
    machines: list[str | None] = [None] * place.world
    torch.distributed.all_gather_object(machines, process_space())
    own = None
    for name in dict.fromkeys(filter(None, machines)):
        ranks = [rank for rank, other in enumerate(machines) if other == name]
        # Of all of them, by all of them.
        group = torch.distributed.new_group(ranks, backend="gloo") if len(ranks) > 1 else None
        if place.rank in ranks:
            own = ranks, group
    if own is None or own[1] is None:
        yield None
        return
    ranks, group = own

    def exchange(told: object) -> list[object]:
        found: list[object] = [None] * len(ranks)
        torch.distributed.all_gather_object(found, told, group)
        return found

    shared = SharedMemory(ranks.index(place.rank), len(ranks), exchange)
    yield shared
    # Not after an error, when an exchange may be open that others will not end.
    torch.distributed.destroy_process_group(group)
    if shared.problem is not None and place.rank == ranks[0]:
        say(
            f"each of {len(ranks)} processes holds a copy of its own of the arrays in memory, as "
            f"they cannot share one on {socket.gethostname()}: {shared.problem}"
        )
