"""Batches of rows, read ahead by threads into a ring of buffers that are used over and over.

Fresh memory for every batch would cost more than reading it: its pages have to be found and
cleared first.
"""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from itertools import pairwise

import numpy as np

from cache.arrays import ForeseenRows, RowReader
from cache.errors import CacheReadError
from cache.reader_threads import ReaderThreads
from cache.shard_files import Buffer, RowNumbers


class Recycled:
    """Buffers of one kind, whose memory is used again once nothing refers to them any more.

    make: gives new memory.
    """

    def __init__(self, make: Callable[[], Buffer]) -> None:
        self._make = make
        self._free: list[Buffer] = []

    def buffer(self) -> Buffer:
        """One whose contents nobody else changes as long as it, or a tensor of it, is held."""
        memory = self._free.pop() if self._free else self._make()
        lent = memory.view()
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


# Pieces smaller than this are not worth a thread's while.
PIECE_BYTES = 1 << 18


class BatchRing:
    """Batches of several arrays, by step.

    sources: the arrays; rows_of: a step's rows [B] of each; slots: buffers for a batch, one
    [B, ...] per source, of which there are as many as batches are read ahead, and one more for
    the batch in use; threads: that read; pieces: in which a batch of an array is read at most, by
    default one for each thread; stop: the first step that is not read ahead; timeout_seconds: how
    long a batch may take; foresight: steps whose rows the arrays are told of, if any keeps rows.
    """

    def __init__(
        self,
        sources: Sequence[RowReader],
        rows_of: Callable[[int], Sequence[RowNumbers]],
        slots: list[Sequence[Buffer]],
        *,
        threads: int,
        pieces: int | None = None,
        stop: int,
        timeout_seconds: float,
        foresight: int = 0,
    ) -> None:
        self._sources = sources
        self._rows_of = rows_of
        self._slots = slots
        self._stop = stop
        self._timeout_seconds = timeout_seconds
        self._threads, self._pieces = ReaderThreads(threads), pieces or threads
        self._reads: dict[int, list[Future[None]]] = {}
        self._owner = os.getpid()
        self._foresight, self._told = foresight, range(0)
        self._foreseen = [
            (place, source)
            for place, source in enumerate(sources)
            if isinstance(source, ForeseenRows) and foresight
        ]

    def take(self, step: int) -> Sequence[Buffer]:
        """The batch of a step, valid until the next call.

        Raises CacheReadError, or what else the reading raised, if it cannot be delivered.
        """
        if step not in self._reads or self._owner != os.getpid():
            self._start_over()
        if self._foreseen and step not in self._told:
            self._tell(step)
        for ahead in range(step, min(step + len(self._slots), max(self._stop, step + 1))):
            if ahead not in self._reads:
                self._reads[ahead] = self._read(ahead)
        self._wait(step, self._reads.pop(step))
        return self._slots[step % len(self._slots)]

    def exchange(self, step: int, buffers: Sequence[Buffer]) -> None:
        """Put others in the place of a step's buffers, which then stay as they are."""
        self._slots[step % len(self._slots)] = buffers

    def close(self) -> None:
        """Give up what is being read."""
        self._cancel()
        for _, source in self._foreseen:
            source.expect(np.empty(0, np.int64))
        self._threads.close()

    def _start_over(self) -> None:
        """Forget what is being read; reads that have begun hold buffers and have to end first."""
        if self._owner == os.getpid():
            wait(self._cancel(), self._timeout_seconds)
        self._reads, self._owner = {}, os.getpid()

    def _tell(self, step: int) -> None:
        """Tell the arrays which rows will be read from a step on, and do so in time again."""
        last = min(step + self._foresight, max(self._stop, step + 1))
        steps = [self._rows_of(one) for one in range(step, last)]
        for place, source in self._foreseen:
            source.expect(np.concatenate([rows[place] for rows in steps]))
        self._told = range(step, step + max(self._foresight // 4, 1))

    def _cancel(self) -> list[Future[None]]:
        """Cancel what can be cancelled, and return the rest."""
        return [read for reads in self._reads.values() for read in reads if not read.cancel()]

    def _read(self, step: int) -> list[Future[None]]:
        slot, reads = self._slots[step % len(self._slots)], []
        for source, rows, buffer in zip(self._sources, self._rows_of(step), slot, strict=True):
            pieces = max(1, min(self._pieces, buffer.nbytes // PIECE_BYTES))
            bounds = [len(rows) * piece // pieces for piece in range(pieces + 1)]
            for start, end in pairwise(bounds):
                reads.append(self._threads.submit(source.read, rows[start:end], buffer[start:end]))
        return reads

    def _wait(self, step: int, reads: Sequence[Future[None]]) -> None:
        deadline = time.monotonic() + self._timeout_seconds
        for read in reads:
            try:
                read.result(max(deadline - time.monotonic(), 0))
            except TimeoutError:
                raise CacheReadError(
                    f"the cache did not deliver its rows within {self._timeout_seconds:g} s",
                    where=f"step {step}",
                    remedy=(
                        "Look at the disk or network it lies on, or raise "
                        "train.reading.timeout_seconds."
                    ),
                ) from None
            except OSError as error:
                raise CacheReadError(
                    f"the cache cannot be read: {error}", where=f"step {step}"
                ) from error
