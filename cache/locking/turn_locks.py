"""The locks of a build where turns are all there is (`turns`): one build at a time."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cache.errors import CacheBusyError
from cache.locking.holders import Holder
from cache.locking.turns import WATCH_SECONDS, HeldTurn, TakenError, Turn, Turns, held
from cache.stores.places import Place


@dataclass(frozen=True)
class LentLock:
    """The lock of a build on the cache at `path`, for the workers that make shards under it."""

    path: Place
    turns: Turns
    number: int

    @contextmanager
    def shard(self, _shard: int) -> Iterator[None]:
        """Claim a shard, which is free: the build gives each to one of its workers."""
        self.confirm()
        yield None

    def confirm(self) -> None:
        """Raise CacheBusyError if the lock was taken over; to be asked before writing."""
        if self.turns.newest() == self.number:
            return
        _, last = self.turns.last()
        raise CacheBusyError(
            f"another build took over the lock of this one ({last.holder})"
            if last
            else "the lock of this build was removed",
            where=self.path,
            remedy="Finished shards are kept; run this again once that build is done.",
        )


class TurnLocks:
    """The locks of one build process on the cache at `path`, which are one.

    break_lock: whether to take it over from a build that gives no sign of life. Not to be sent to
    other processes, which get `for_workers`.
    """

    def __init__(self, path: Place, *, break_lock: bool = False) -> None:
        self._path, self._break_lock = path, break_lock
        self._turns = turns_beside(path)
        self._own: HeldTurn | None = None
        self._depth, self._ending = 0, ExitStack()

    @contextmanager
    def preparing(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Have the cache for this process. Raises CacheBusyError if another build has it.

        waiting: told, in a sentence, while a lock is watched that may have to be broken.
        """
        with self._held(waiting):
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keep the lock while shards are made."""
        with self._held(lambda _text: None):
            yield

    def require_alone(self, purpose: str) -> None:
        """Nothing: whoever prepares is alone."""
        del purpose

    def part(self, _name: str) -> "TurnLocks":
        """The locks of a part of the cache, which are those of the cache."""
        return self

    def for_workers(self) -> LentLock:
        """What other processes that make shards for this one have."""
        if self._own is None:
            raise ValueError("workers make shards while this process is at work")
        return LentLock(self._path, self._turns, self._own.number)

    @contextmanager
    def shard(self, shard: int) -> Iterator[None]:
        """Claim a shard, which is free while this process is at work."""
        with self.for_workers().shard(shard):
            yield None

    def confirm(self) -> None:
        """Raise CacheBusyError if the lock was taken over; to be asked before writing."""
        self.for_workers().confirm()

    @contextmanager
    def _held(self, tell: Callable[[str], None]) -> Iterator[None]:
        if self._depth:
            self.confirm()
        else:
            self._own = self._ending.enter_context(self._taken(tell))
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            # Preparing ends before the work that begins meanwhile.
            if not self._depth:
                self._own = None
                self._ending.__exit__(*sys.exc_info())

    @contextmanager
    def _taken(self, tell: Callable[[str], None]) -> Iterator[HeldTurn]:
        def may_follow(turns: Turns, turn: Turn) -> bool:
            if not self._break_lock:
                return False
            tell(f"watching for {WATCH_SECONDS:.0f} s whether there is life in {turn.shown}")
            return not turns.is_changing(turn)

        with ExitStack() as stack:
            try:
                own = stack.enter_context(held(self._turns, may_follow))
            except TakenError as error:
                raise self._busy(error.turn) from error
            yield own

    def _busy(self, turn: Turn) -> CacheBusyError:
        if self._break_lock:
            return CacheBusyError(
                f"its lock is held by a build that gives signs of life: {turn.shown}",
                where=self._path,
                remedy="Wait until it is done, or stop it; --break-lock is for builds that died.",
            )
        return CacheBusyError(
            f"another build is at work on it: {turn.shown}",
            where=self._path,
            remedy=(
                "Here only one build can be at work at a time: wait until it is done, or stop it. "
                "If it died, `repa-cache build --break-lock` takes over its lock, after watching "
                f"it for {WATCH_SECONDS:.0f} s."
            ),
        )


@contextmanager
def claimed(lock: Path) -> Iterator[Holder | None]:
    """Hold what stands for a lock file: yields None, or who holds it already."""
    turns = Turns(lock.with_name(f"{lock.name}.turns"))
    with ExitStack() as stack:
        other = None
        try:
            stack.enter_context(held(turns))
        except TakenError as error:
            note = f"{error.turn.shown.note}; if it died, remove {turns.folder}"
            other = replace(error.turn.holder, note=note)
        yield other


def turns_beside(path: Place) -> Turns:
    """The turns of what is at a place."""
    return Turns(path.with_name(f".{path.name}.turns"))
