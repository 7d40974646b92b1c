"""Memory that processes of one machine see together: one copy of what all of them read.

It has no name in any file system, so that it needs no room there and is gone with the last process
that sees it, however that one ends.
"""

import math
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

# By which it is found in /proc/PID/smaps.
NAME = "repa-cache"


class SharedMemory:
    """Gives memory to all processes of a machine, which have to ask for the same together.

    number, count: of this process among them, and how many they are; exchange: what each of them
    says, in the order of their numbers, once all have said something. problem: why they cannot
    share, once it is known.
    """

    def __init__(self, number: int, count: int, exchange: Callable[[Any], Sequence[Any]]) -> None:
        self.problem: str | None = None
        self._number, self._count = number, count
        self._exchange = exchange

    def buffer(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Memory full of zeros, of which all write parts; None in all of them if one has none."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.problem is not None or not size:
            return None
        with ExitStack() as held:
            place, problem = self._exchange(self._made(size, held))[0]
            memory, problem = (None, problem) if problem else _opened(place, size)
            self.problem = next(filter(None, self._exchange(problem)), None)
        if memory is None or self.problem is not None:
            return None
        return np.frombuffer(memory, dtype).reshape(shape)

    def _made(self, size: int, held: ExitStack) -> tuple[str, str | None]:
        """The path of memory that the first process makes and holds, or why it cannot."""
        if self._number > 0:
            return "", None
        try:
            file = _created(size)
        except OSError as error:
            return "", str(error)
        held.callback(os.close, file)
        return f"/proc/{os.getpid()}/fd/{file}", None

    def fill(self, rows: int, read: Callable[[slice], None]) -> None:
        """Have each process read its part of so many rows; returns when all have."""
        own = (rows * number // self._count for number in (self._number, self._number + 1))
        read(slice(*own))
        self._exchange(None)


def _created(size: int) -> int:
    """A file in memory alone, as a descriptor."""
    if not hasattr(os, "memfd_create"):
        raise OSError("the system has no files without a name")
    file = os.memfd_create(NAME)
    try:
        # Now, as an error: else the first page that lacks would kill whoever writes it.
        os.posix_fallocate(file, 0, size)
    except BaseException:
        os.close(file)
        raise
    return file


def _opened(place: str, size: int) -> tuple[mmap.mmap | None, str | None]:
    """The memory at a path, or why it cannot be had."""
    try:
        file = os.open(place, os.O_RDWR)
    except OSError as error:
        return None, str(error)
    try:
        return mmap.mmap(file, size), None
    except OSError as error:
        return None, str(error)
    finally:
        os.close(file)
