"""Locks where the system has none: in object stores, and on file systems that do not lock files.

A folder beside the cache holds numbered turns, small objects or files of which each can be made
once only, by whoever comes first. Whoever made the newest one has the lock:

    .NAME.zarr.turns/7      who has it, since when, and the signs of life so far

The holder writes a sign of life into its turn every so often, and ends by writing that the turn is
over; only then may the next one be made. The turn of a holder that died remains. One whose process
is gone from the machine that asks is followed by the next turn at once; any other only on request,
and only if it did not change while it was watched. No clocks of two machines are compared.

A holder that was taken for dead sees a newer turn than its own, and has to look before it writes.
The newest turn is never removed, so that no number is given twice.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from types import FrameType
from typing import TypeAlias
from uuid import uuid4

from cache.errors import LockError, RepaCacheError
from cache.files import remove_leftovers, write_atomically
from cache.locking.holders import Holder, Process, now
from cache.stores.places import Place, StorePath

# Between two signs of life. A holder that gives none for as long as it is watched is dead.
BEAT_SECONDS, WATCH_SECONDS = 20.0, 60.0
# Between two looks at a turn that is watched.
LOOK_SECONDS = 1.0
# How often a turn is read that says nothing, and the pause in between.
READS, READ_SECONDS = 20, 0.05
# Folders in which a second turn of the same number was seen to be refused.
_sound: set[str] = set()


@dataclass(frozen=True)
class Turn:
    """What a turn says. seen: the time of the last sign of life, by the holder's clock.

    token: tells it from all others; beats: signs of life so far; is_over: whether it was given
    back.
    """

    holder: Holder
    process: Process
    token: str = field(default_factory=lambda: uuid4().hex)
    beats: int = 0
    seen: str = field(default_factory=now)
    is_over: bool = False

    @classmethod
    def mine(cls) -> "Turn":
        """A new one of this process."""
        return cls(Holder.me(), Process.me())

    @classmethod
    def parse(cls, content: bytes) -> "Turn":
        """What was written into a turn; that of an unknown holder if its maker died on the way."""
        try:
            fields = json.loads(content)
            holder, process = Holder(**fields.pop("holder")), Process(**fields.pop("process"))
            return cls(holder, process, **fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(Holder.unknown(), Process(0, "", 0), token="", seen="unknown")

    def content(self) -> bytes:
        return json.dumps({**asdict(self), "holder": self.holder.named()}).encode()

    def beat(self) -> "Turn":
        """The same after one more sign of life."""
        return replace(self, beats=self.beats + 1, seen=now())

    @property
    def is_free(self) -> bool:
        """Whether the next one may be made."""
        return self.is_over or self.process.has_ended

    @property
    def shown(self) -> Holder:
        """Its holder, with the last sign of life."""
        return replace(self.holder, note=f"last sign of life at {self.seen} by its clock")


# Whether the next turn may be made although the newest one is not over.
MayFollow: TypeAlias = "Callable[[Turns, Turn], bool]"


def _never(_turns: "Turns", _turn: Turn) -> bool:
    return False


class TakenError(Exception):
    """Somebody else has the lock. turn: that it is held by."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(str(turn.shown))
        self.turn = turn


@dataclass(frozen=True)
class Turns:
    """The turns in a folder."""

    folder: Place

    def newest(self) -> int:
        """The number of the newest turn, 0 if there is none."""
        return max(self._numbers(), default=0)

    def last(self) -> tuple[int, Turn | None]:
        """The newest turn and its number, or 0."""
        while number := self.newest():
            # A later one may have done away with it.
            with suppress(FileNotFoundError):
                return number, self._read(number)
        return 0, None

    def write(self, number: int, turn: Turn) -> None:
        """Change one's own turn."""
        write_atomically(self.folder / str(number), turn.content())

    def take(self, turn: Turn, may_follow: MayFollow) -> int:
        """Make the next turn, and return its number. Raises TakenError, and LockError.

        may_follow: whether that may be although the newest one is not over.
        """
        while True:
            number, last = self.last()
            if last and not last.is_free and not may_follow(self, last):
                raise TakenError(last)
            if not self._make(number + 1, turn):
                continue
            if self.newest() == number + 1:
                self._tidy(number)
                return number + 1
            # Later turns came and went while this process looked away.
            self._remove(number + 1)

    def is_changing(self, turn: Turn) -> bool:
        """Watch the newest turn: whether its holder gives a sign of life, or another follows."""
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            if self.last()[1] != turn:
                return True
        return False

    def _read(self, number: int) -> Turn:
        content = b""
        for _ in range(READS):
            if content := (self.folder / str(number)).read_bytes():
                break
            # A file is there before its maker has written it.
            time.sleep(READ_SECONDS)
        return Turn.parse(content)

    def _tidy(self, number: int) -> None:
        """Remove all turns up to this one, as far as that is granted: they mean nothing."""
        with suppress(RepaCacheError, OSError):
            remove_leftovers(self.folder)
            for former in self._numbers():
                if former <= number:
                    self._remove(former)

    def _numbers(self) -> list[int]:
        try:
            return [int(one.name) for one in self.folder.iterdir() if one.name.isdecimal()]
        except FileNotFoundError:
            return []

    def _make(self, number: int, turn: Turn) -> bool:
        """Make a turn; returns whether this process did. Raises LockError if two may."""
        place = self.folder / str(number)
        try:
            _create(place, turn.content())
        except FileExistsError:
            # The answer to a request that was repeated may be about its first attempt.
            with suppress(FileNotFoundError):
                return self._read(number).token == turn.token
            return False
        if str(self.folder) not in _sound:
            with suppress(FileExistsError):
                _create(place, turn.content())
                place.unlink(missing_ok=True)
                raise LockError(
                    "an object that is to be written only if there is none is written twice",
                    where=self.folder.parent,
                    remedy=(
                        "Without conditional writes, two builds could write the same cache at "
                        "once. Choose a place in a store that has them, as S3, Google Cloud "
                        "Storage and Azure do."
                    ),
                )
            _sound.add(str(self.folder))
        return True

    def _remove(self, number: int) -> None:
        (self.folder / str(number)).unlink(missing_ok=True)


def _create(place: Place, content: bytes) -> None:
    """Write something new. Raises FileExistsError if there is something."""
    if isinstance(place, StorePath):
        place.put(content, is_new=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


class HeldTurn:
    """A turn of this process, with a thread that gives signs of life until it ends."""

    def __init__(self, turns: Turns, may_follow: MayFollow) -> None:
        self.turns = turns
        self._turn = Turn.mine()
        self.number = turns.take(self._turn, may_follow)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock of a cache")
        self._thread.start()

    @property
    def is_newest(self) -> bool:
        """Whether nobody took it over."""
        return self.turns.newest() == self.number

    def end(self) -> None:
        """Give the lock back."""
        self._ending.set()
        self._thread.join()
        if self.is_newest:
            self.turns.write(self.number, replace(self._turn, is_over=True))

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_SECONDS):
            # What fails here is tried again; who is about to write asks for itself.
            with suppress(RepaCacheError, OSError):
                if not self.is_newest:
                    return
                self._turn = self._turn.beat()
                self.turns.write(self.number, self._turn)


@contextmanager
def held(turns: Turns, may_follow: MayFollow = _never) -> Iterator[HeldTurn]:
    """Have the newest turn while the block lasts, or until a signal ends this process.

    Raises TakenError and LockError.
    """
    own = HeldTurn(turns, may_follow)
    try:
        with _ended_by_signals(own):
            yield own
    except BaseException:
        # What went wrong is told, and not that the lock cannot be given back either.
        with suppress(RepaCacheError, OSError):
            own.end()
        raise
    own.end()


@contextmanager
def _ended_by_signals(own: HeldTurn) -> Iterator[None]:
    """Also end a turn when a signal is about to end this process at once."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        with suppress(RepaCacheError, OSError):
            own.end()
        signal.raise_signal(number)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
