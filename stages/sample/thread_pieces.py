"""Computing pieces by threads, each by one, so that no bit depends on how many there are."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Found = TypeVar("Found")

_own = threading.local()


def map_by_threads(compute: Callable[[Piece], Found], pieces: Sequence[Piece]) -> Iterator[Found]:
    """What is computed for each piece, in order, as it is finished: to the last bit.

    Kernels of several threads cut their work by the number of these, and add up in another order.
    So every piece is computed by one thread, and there are as many pieces at once as torch has
    threads; for transformers of some size that is as fast. Meanwhile torch computes with one thread
    everywhere. Who stops asking abandons the rest, which `compute` has to notice by
    `raise_if_abandoned`.
    """
    threads, abandoned = torch.get_num_threads(), threading.Event()

    def begin() -> None:
        _own.abandoned = abandoned

    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=begin)
    try:
        yield from pool.map(compute, pieces)
    finally:
        abandoned.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def raise_if_abandoned() -> None:
    """Raise CancelledError in a thread whose result nobody waits for any more."""
    abandoned = getattr(_own, "abandoned", None)
    if abandoned is not None and abandoned.is_set():
        raise CancelledError
