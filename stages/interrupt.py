"""Stopping at a safe point: Ctrl-C and SIGTERM ask, the work answers when it can."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cache.errors import RepaCacheError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedWorkError(RepaCacheError):
    """The work stopped because it was asked to; the message says how to go on."""


class StopRequest:
    """Whether somebody asked the work to stop."""

    def __init__(self) -> None:
        self.is_made = False

    def __bool__(self) -> bool:
        return self.is_made


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns the first signal into a request; a second one ends the process as usual."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(_number: int, _frame: FrameType | None) -> None:
        request.is_made = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
