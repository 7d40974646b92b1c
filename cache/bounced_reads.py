"""Reading into memory that a disk cannot write to."""

import mmap
import threading
from collections.abc import Callable

# What is read at once by way of other memory: small enough for a core's cache.
BOUNCE_BYTES = 1 << 20

_bounce = threading.local()


def read_by_bounce(fill: Callable[[int, memoryview], None], offset: int, view: memoryview) -> None:
    """Fill a view, which a disk cannot write to, by way of memory that it can.

    offset: of the first byte of the view; fill: does that for memory on page boundaries, of which
    each thread has its own.
    """
    if not hasattr(_bounce, "buffer"):
        # Private, as a forked process reads something else.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        _bounce.buffer = memoryview(mmap.mmap(-1, BOUNCE_BYTES, flags=flags))
    for start in range(0, len(view), BOUNCE_BYTES):
        part = view[start : start + BOUNCE_BYTES]
        fill(offset + start, _bounce.buffer[: len(part)])
        part[:] = _bounce.buffer[: len(part)]
