"""Work that waits for a disk or a network, and work that does not."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")

# Times as long as it computes: more than a busy machine makes of work that does not wait.
WAITING = 8.0
# Items for the threads, before it is tried again whether they are needed.
SPELL = 16


def in_order(pool: Executor, work: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """What `work` makes of each item, in order: by the threads of a pool as far as it waits.

    Where it does not, one thread is faster than several, which hand Python's lock to one another
    at every system call.
    """
    left = iter(items)
    for item in left:
        start, used = time.perf_counter(), time.thread_time()
        done = work(item)
        has_waited = time.perf_counter() - start > WAITING * (time.thread_time() - used)
        yield done
        if has_waited:
            yield from pool.map(work, islice(left, SPELL))
