"""Reader threads that never outlive, or hold up, the process they work for."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

Task = tuple[Future[None], Callable[..., None], tuple[Any, ...]]


class ReaderThreads:
    """Runs tasks in the order in which they come.

    The standard library's pool waits for its threads when the process ends, for ever if a disk
    hangs, and its threads do not exist in a forked child; these are daemons, and are started
    anew in a child.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._owner = 0
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        """Run a function in a thread; the future tells when, and with which error."""
        if self._owner != os.getpid():
            self._start()
        future: Future[None] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Let the threads end when they have nothing left to do."""
        if self._owner == os.getpid():
            for _ in range(self.count):
                self._tasks.put(None)
        self._owner = 0

    def _start(self) -> None:
        self._owner, self._tasks = os.getpid(), SimpleQueue()
        for number in range(self.count):
            threading.Thread(
                target=_work, args=(self._tasks,), name=f"reader-{number}", daemon=True
            ).start()


def _work(tasks: "SimpleQueue[Task | None]") -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            function(*arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
