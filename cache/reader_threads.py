"""Threads that read, and end with the process whatever they wait for."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")
Task = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]

_starting = threading.Lock()


def _renew_lock() -> None:
    """Forget, in a forked child, that another thread of its parent may have held the lock."""
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class ReaderThreads:
    """Runs tasks in the order in which they come.

    The standard library's pool waits for its threads when the process ends, for ever if a disk
    hangs, and its threads do not exist in a forked child; these are daemons, and are started
    anew in a child.
    """

    def __init__(self, count: int, name: str = "reader") -> None:
        self.count = count
        self._name = name
        self._owner = 0
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()

    def submit(self, function: Callable[..., Found], *arguments: Any) -> "Future[Found]":
        """Run a function in a thread; the future tells what it gave, or with which error."""
        if self._owner != os.getpid():
            with _starting:
                self._start()
        future: Future[Found] = Future()
        self._tasks.put((future, function, arguments))
        return future

    def map(self, work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
        """What `work` gives for each item, all at once as far as there are threads.

        The first error ends it, when nothing that has begun is at work any more.
        """
        if len(items) == 1:
            return [work(items[0])]
        futures = [self.submit(work, item) for item in items]
        if wait(futures, return_when=FIRST_EXCEPTION).not_done:
            wait([future for future in futures if not future.cancel()])
        failed = [one for one in futures if not one.cancelled() and one.exception()]
        return [future.result() for future in failed or futures]

    def close(self) -> None:
        """Let the threads end when they have nothing left to do."""
        if self._owner == os.getpid():
            for _ in range(self.count):
                self._tasks.put(None)
        self._owner = 0

    def _start(self) -> None:
        if self._owner == os.getpid():
            return
        self._tasks = SimpleQueue()
        for number in range(self.count):
            threading.Thread(
                target=_run_tasks, args=(self._tasks,), name=f"{self._name}-{number}", daemon=True
            ).start()
        self._owner = os.getpid()


def _run_tasks(tasks: "SimpleQueue[Task | None]") -> None:
    while (task := tasks.get()) is not None:
        future, function, arguments = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            found = function(*arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(found)
