"""Stopping at a safe point: signals ask, the work answers when it can.

Ctrl-C, SIGTERM, SIGHUP of a terminal that is closed, and SIGUSR1, which SLURM can send some time
before it ends a job.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cache.errors import RepaCacheError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Signals within this time of the first are taken for it.
SAME_SECONDS = 1.0


class InterruptedWorkError(RepaCacheError):
    """The work stopped because it was asked to; the message says how to go on."""


class FollowingError(RepaCacheError):
    """A process ends because another of its run has failed, which says why."""


class StopRequest:
    """Whether somebody asked the work to stop."""

    def __init__(self) -> None:
        self.is_made = False

    def __bool__(self) -> bool:
        return self.is_made


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns the first signal into a request; a second one ends the process as usual.

    Those that follow at once are the same one: torchrun passes on what the terminal has already
    sent to all of its processes.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        # nohup: the work is to outlive its terminal.
        del before[signal.SIGHUP]
    first = math.inf

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        request.is_made = True
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
        yield request
    finally:
        restore()
