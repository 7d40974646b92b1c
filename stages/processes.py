"""The processes of a run: which of them this one is, and how they stop at a safe point.

What torchrun says in the environment, other launchers say under the same names and leave behind,
in notebooks and in jobs: what is there has to be whole before it counts. Signals ask the work to
stop, which answers when it can: Ctrl-C, SIGTERM, SIGHUP of a terminal that is closed, and SIGUSR1,
which SLURM can send some time before it ends a job.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from cache.errors import RepaCacheError

WORLD, RANK, LOCAL = "WORLD_SIZE", "RANK", "LOCAL_RANK"
LOCAL_WORLD = "LOCAL_WORLD_SIZE"
ADDRESS, PORT = "MASTER_ADDR", "MASTER_PORT"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Signals within this time of the first are taken for it.
SAME_SECONDS = 1.0


class LaunchError(RepaCacheError):
    """The environment tells of several processes, but not all that they need."""


def world_size() -> int:
    """How many processes there are: one, unless a launcher says otherwise.

    Raises LaunchError if there are several and something that they need is missing or no number.
    """
    world = _number(WORLD, least=1) if os.environ.get(WORLD) else 1
    if world > 1:
        _number(RANK, below=world)
        _number(PORT)
        if not os.environ.get(ADDRESS):
            raise _refused(f"{ADDRESS} is not set")
    return world


def rank() -> int:
    """The number of this process among all, 0 if it is alone. Raises LaunchError likewise."""
    return _number(RANK) if world_size() > 1 else 0


def local_rank() -> int | None:
    """The number of this process on its machine, if there are several and it is known."""
    return _number(LOCAL) if world_size() > 1 and os.environ.get(LOCAL) else None


def local_world_size() -> int:
    """How many of the processes run on this machine, as far as it is known."""
    return _number(LOCAL_WORLD, least=1) if world_size() > 1 and os.environ.get(LOCAL_WORLD) else 1


def own_cores(workers: int = 1) -> int:
    """Cores for each of so many workers of this machine, of those that this process may use.

    Workers that torchrun started count too.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // max(workers, local_world_size()))


def _number(name: str, least: int = 0, below: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None:
        raise _refused(f"{name} is not set")
    number = int(value) if value.strip().isdecimal() else -1
    if number < least or (below is not None and number >= below):
        limits = f"from {least}" if below is None else f"from {least} to {below - 1}"
        raise _refused(f"{name} is {value!r}, expected a whole number {limits}")
    return number


def _refused(what: str) -> LaunchError:
    world = "" if what.startswith(WORLD) else f"{WORLD} is {os.environ[WORLD]!r}, but "
    return LaunchError(
        f"{world}{what}",
        remedy=(
            "Several processes are started with `torchrun --nproc-per-node N --no-python "
            "repa-cache train`, which sets all of these. If another launcher left them behind: "
            f"unset {WORLD} {RANK} {LOCAL} {LOCAL_WORLD} {ADDRESS} {PORT}"
        ),
    )


class InterruptedWorkError(RepaCacheError):
    """The work stopped because it was asked to; the message says how to go on."""


class FollowingError(RepaCacheError):
    """A process ends because another of its run has failed, which says why."""


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Yields whether somebody asked the work to stop, by a signal; a second one ends the process.

    Those that follow at once are the same one: torchrun passes on what the terminal has already
    sent to all of its processes.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        # nohup: the work is to outlive its terminal.
        del before[signal.SIGHUP]
    first = math.inf

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        if time.monotonic() - first > SAME_SECONDS:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: first < math.inf
    finally:
        restore()
