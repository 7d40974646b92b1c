"""The processes of a command: where each works, how they meet, and how they fail as one.

A process that fails leaves the others waiting in an exchange that it will never take part in, for
as long as half an hour. So it says that it failed before it ends; the others then end too, and say
nothing of what they meet on the way.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from cache.errors import RepaCacheError
from stages.placement import Placement, find_device
from stages.processes import (
    ADDRESS,
    PORT,
    RANK,
    WORLD,
    FollowingError,
    InterruptedWorkError,
    LaunchError,
    world_size,
)
from stages.progress import say

FAILURES = "repa-cache/failures"
# How often a process looks whether another has failed, and what it then has to end by itself.
LOOK_SECONDS, GRACE_SECONDS = 0.5, 3.0
# How Gloo says that a process it exchanges with is gone, in an error of no kind of its own.
GLOO = "gloo"


class LostProcessError(RepaCacheError):
    """Another process of the run is gone, and has not said why."""


@contextmanager
def failing_together(store: Store) -> Iterator[None]:
    """An error in the block of any process ends all of them.

    store: that they share. Raises FollowingError in all but the first, and LostProcessError if
    another process was killed.
    """
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(store.clone(), ended), daemon=True)  # type: ignore[attr-defined]
    watch.start()
    try:
        yield
    except InterruptedWorkError:
        raise
    except Exception as error:
        if not _is_first(store):
            raise FollowingError("another process of this run has failed") from error
        if isinstance(error, DistError) or GLOO in str(error):
            raise LostProcessError(
                f"Another process of this run is gone ({str(error).splitlines()[0]})",
                remedy=(
                    "What it said stands above; if nothing does, it was killed, as systems do "
                    "that run out of memory. Run the same command to go on."
                ),
            ) from error
        raise
    finally:
        ended.set()
        watch.join(GRACE_SECONDS)


def _is_first(store: Store) -> bool:
    """Whether no other process has failed before, as far as can be known."""
    try:
        return store.add(FAILURES, 1) == 1
    except DistError:
        # The process that kept the store is gone.
        return True


def _watch(store: Store, ended: threading.Event) -> None:
    """End this process if another has failed and this one waits for it."""
    try:
        while not store.check([FAILURES]):
            if ended.wait(LOOK_SECONDS):
                return
    except DistError:
        # The launcher, or the first process, is gone: as if it had asked to stop.
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        return
    if not ended.wait(GRACE_SECONDS):
        os._exit(1)


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
