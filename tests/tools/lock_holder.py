"""A process that takes and gives back the lock of a cache, a line of its input at a time."""

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from cache.errors import CacheBusyError
from cache.locking.turn_locks import TurnLocks
from cache.stores.places import Place, place_of


class HolderProcess:
    """Another process, at work on the cache at a place as soon as it is told."""

    def __init__(self, place: Place) -> None:
        command = [sys.executable, str(Path(__file__)), str(place)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def tell(self, order: str) -> None:
        """Give it something to do: `take` or `end`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """What it says when it is done."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def asked(self, order: str) -> str:
        self.tell(order)
        return self.answer()

    def stop(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal; returns how it ended."""
        self._process.send_signal(number)
        status = self._process.wait(60)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        return status


def main(place: Place) -> None:
    # Shells have what they start in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    locks, held = TurnLocks(place), ExitStack()
    for order in sys.stdin:
        if order.strip() == "end":
            held.close()
            said = "ended"
        else:
            try:
                held.enter_context(locks.at_work())
                said = "taken"
            except CacheBusyError as error:
                said = str(error)
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(place_of(sys.argv[1]))
