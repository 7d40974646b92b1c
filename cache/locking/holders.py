"""Who holds a lock: a process, and whether it is known to have ended."""

import json
import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def now() -> str:
    """The time by this machine's clock: ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Holder:
    """A process that is at work on a cache. since: as `now` has it.

    note: what else is known of it, in parentheses behind its name.
    """

    host: str
    pid: int
    since: str
    note: str = field(default="", compare=False)

    @classmethod
    def me(cls) -> "Holder":
        """The process that asks, from now on."""
        return cls(socket.gethostname(), os.getpid(), now())

    @classmethod
    def unknown(cls) -> "Holder":
        return cls("an unknown host", 0, "a moment ago")

    @classmethod
    def read(cls, lock: Path) -> "Holder":
        """Who wrote its name into a lock."""
        try:
            return cls(**json.loads(lock.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls.unknown()

    def write(self, lock: Path) -> None:
        lock.write_text(json.dumps(self.named()), encoding="utf-8")

    def named(self) -> dict[str, Any]:
        """What another process reads of it."""
        return {"host": self.host, "pid": self.pid, "since": self.since}

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"process {self.pid} on {self.host}, since {self.since}{note}"


@dataclass(frozen=True)
class Process:
    """A process as no other is known by, also not a later one of its number.

    space: that its number is of, a boot of a machine and a namespace in it, or "" where the system
    does not tell; started: in ticks of its clock since that boot.
    """

    pid: int
    space: str
    started: int

    @classmethod
    def me(cls) -> "Process":
        return cls(os.getpid(), process_space(), _state(os.getpid())[1])

    @property
    def has_ended(self) -> bool:
        """Whether it is sure to have ended, which only its own machine can tell."""
        if not self.space or self.space != process_space():
            return False
        try:
            os.kill(self.pid, 0)
            state, started = _state(self.pid)
        except ProcessLookupError:
            return True
        except OSError:
            # Of somebody else, and there.
            return False
        return state in "XZ" or started != self.started


def process_space() -> str:
    """What only processes that see one another have in common, or "" where that is not known.

    It is a start of the system, and a namespace of process numbers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, int]:
    """State and start of a process: the third and the 22nd field of its status."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if not process_space():
            return "?", 0
        raise
    # A name in parentheses comes second, and may hold spaces.
    fields = status.rpartition(")")[2].split()
    return fields[0], int(fields[19])
