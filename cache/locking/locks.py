"""Several builds on one cache: who is at work, and who makes which shard.

On disks, builds share the work by the file system's own locks (`file_locks`). In object stores, and
on file systems that do not lock files, there is one build at a time, whose workers make shards
under its lock (`turns`).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from cache.errors import LockError
from cache.locking import file_locks, turn_locks
from cache.locking.file_locks import FileLocks
from cache.locking.holders import Holder
from cache.locking.turn_locks import TurnLocks
from cache.stores.places import Place

__all__ = ["BuildLocks", "Holder", "ShardLocks", "build_locks", "claimed"]

Tell = Callable[[str], None]
# Folders whose file systems were said not to lock files.
_told: set[str | None] = set()


class ShardLocks(Protocol):
    """What whoever makes shards has to hold. May be sent to another process."""

    def shard(self, shard: int) -> AbstractContextManager[Holder | None]:
        """Claim a shard: yields None if this process has it now, or else who has."""

    def confirm(self) -> None:
        """Raise CacheBusyError if others took over what this process held; ask before writing."""


class BuildLocks(ShardLocks, Protocol):
    """The locks of one build process on a cache."""

    def preparing(self, waiting: Tell) -> AbstractContextManager[None]:
        """Nobody else lays out rows and columns meanwhile.

        waiting: told once, in a sentence, for whom this process has to wait. Raises CacheBusyError
        where it may not wait, as the work cannot be shared.
        """

    def at_work(self) -> AbstractContextManager[None]:
        """Counts this process among those that make shards; to be entered while preparing."""

    def require_alone(self, purpose: str) -> None:
        """Raise CacheBusyError, naming the holders, if another build is at work.

        To be called while preparing, so that none can join. purpose: what needs it.
        """

    def part(self, name: str) -> "BuildLocks":
        """The locks of a part of the cache, whose shards have numbers of their own."""

    def for_workers(self) -> ShardLocks:
        """What other processes that make shards for this one have."""


def build_locks(path: Place, tell: Tell, *, break_lock: bool = False) -> BuildLocks:
    """The locks of a build on the cache at a place.

    tell: told once, in a sentence, if builds cannot share the work as they do on other disks;
    break_lock: whether to take over the lock of a build that gives no sign of life.
    """
    if isinstance(path, Path):
        locks = FileLocks(path)
        try:
            locks.check()
        except LockError as error:
            _tell_once(error, ": one build at a time", tell)
        else:
            return locks
    return TurnLocks(path, break_lock=break_lock)


@contextmanager
def claimed(lock: Path, tell: Tell = lambda _text: None) -> Iterator[Holder | None]:
    """Hold a lock file: yields None, or who holds it already. The file stays.

    tell: told once, in a sentence, if the lock is not the file system's own.
    """
    with ExitStack() as stack:
        try:
            other = stack.enter_context(file_locks.claimed(lock))
        except LockError as error:
            _tell_once(error, "", tell)
            other = stack.enter_context(turn_locks.claimed(lock))
        yield other


def _tell_once(error: LockError, rest: str, tell: Tell) -> None:
    """Tell that the file system of a folder does not lock files."""
    if error.where not in _told:
        _told.add(error.where)
        tell(f"{error.where}: {error.what}; lock files with signs of life take their place{rest}")
