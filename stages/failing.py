"""How the processes of a run fail: as one, and with one error.

A process that fails leaves the others waiting in an exchange that it will never take part in, for
as long as half an hour. So it says that it failed before it ends; the others then end too, and say
nothing of what they meet on the way.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from cache.errors import RepaCacheError
from stages.interrupt import FollowingError, InterruptedWorkError

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
