"""A bounce buffer: reading into memory that a disk cannot write to, by way of some that it can."""

import mmap
import threading
from collections.abc import Callable

# What is read at once: small enough for a core's cache.
BOUNCE_BYTES = 1 << 20

_own = threading.local()


def read_by_bounce(fill: Callable[[int, memoryview], None], offset: int, view: memoryview) -> None:
    """Fill a view with the bytes from an offset on.

    fill: does that for memory on page boundaries, of which each thread has its own.
    """
    if not hasattr(_own, "buffer"):
        # Private, as a forked process reads something else.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        _own.buffer = memoryview(mmap.mmap(-1, BOUNCE_BYTES, flags=flags))
    for start in range(0, len(view), BOUNCE_BYTES):
        part = view[start : start + BOUNCE_BYTES]
        fill(offset + start, _own.buffer[: len(part)])
        part[:] = _own.buffer[: len(part)]
