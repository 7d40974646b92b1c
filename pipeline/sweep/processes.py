"""Starting the process of a run, and following it to its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline.exits import INTERRUPTED
from pipeline.sweep.work import SAID, Work

POLL_SECONDS = 0.1
# Of what a process wrote that said nothing for people.
LAST_LINES = 3


class Outcome(Enum):
    """How the process of a run ended."""

    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Order:
    """A process to start. place: its working folder; log: a file that gets what it says."""

    name: str
    place: Path
    log: Path
    work: Work


@dataclass(frozen=True)
class Ended:
    """How a process ended. error: what it said, or what ended it, if it failed."""

    outcome: Outcome
    error: str = ""


def follow(
    order: Order, is_asked: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Ended:
    """Start the process of a run, and wait for its end.

    is_asked: whether it is to be stopped, which it answers with a checkpoint; environment: what
    it gets beside this process's.
    """
    order.log.parent.mkdir(parents=True, exist_ok=True)
    with order.log.open("ab") as log:
        begin, was_asked = log.tell(), False
        child = subprocess.Popen(
            # -P: a folder may hold a `pipeline.py` of its own.
            [sys.executable, "-P", "-m", "pipeline.sweep.work", order.work.written()],
            cwd=order.place,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            # Ctrl-C reaches it from here, once.
            start_new_session=True,
        )
        with child:
            while child.poll() is None:
                if is_asked() and not was_asked:
                    was_asked = True
                    child.terminate()
                time.sleep(POLL_SECONDS)
    if child.returncode == 0:
        return Ended(Outcome.DONE)
    if was_asked or child.returncode == INTERRUPTED:
        return Ended(Outcome.STOPPED)
    return Ended(Outcome.FAILED, _error(order.log, begin, child.returncode))


def _error(log: Path, begin: int, code: int) -> str:
    """What a process wrote of its failure, or what ended it.

    begin: where in the log it began to write; code: its exit code, negative for a signal.
    """
    with log.open("rb") as stream:
        stream.seek(begin)
        text = stream.read().decode(errors="replace")
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    _, said, error = text.rpartition(SAID)
    if said:
        return error.strip()
    return " / ".join(text.strip().splitlines()[-LAST_LINES:]) or f"exit code {code}"
