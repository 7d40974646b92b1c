"""Locks of the file system (flock), by which several builds share the work on one cache.

They lie in a hidden folder beside the cache; the system frees those of a process that died,
wherever it stopped. Each holder writes into its lock who it is.

    .NAME.zarr.locks/prepare           held while rows and columns are laid out: one at a time
    .NAME.zarr.locks/build-HOST-PID    held by every build that makes shards
    .NAME.zarr.locks/shard-S           held by whoever makes shard S
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from cache.errors import CacheBusyError, CacheWriteError, LockError
from cache.locking.holders import Holder

PREPARE = "prepare"
# What system calls say where there is no such thing as a lock.
UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
# Devices of file systems whose locks were seen to keep others out.
_sound: set[int] = set()


def _acquired(path: Path, timeout: float) -> AcquireReturnProxy[FileLock]:
    """A lock file that nobody else can have. Raises LockError where locks keep nobody out."""
    try:
        # A shard is claimed by one thread and finished by another.
        held = FileLock(path, timeout, thread_local=False, fallback_to_soft=False).acquire()
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        raise _no_locks(path, f"its locks fail ({error.strerror})") from error
    try:
        _check_it_excludes(path)
    except BaseException:
        held.lock.release()
        raise
    return held


def _check_it_excludes(lock: Path) -> None:
    """Raise LockError if a lock that is held is given once more."""
    with lock.open("rb") as second:
        device = os.fstat(second.fileno()).st_dev
        if device in _sound:
            return
        with suppress(BlockingIOError, PermissionError):
            fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
            raise _no_locks(lock, "it grants the same lock twice")
    _sound.add(device)


def _no_locks(lock: Path, why: str) -> LockError:
    return LockError(
        f"the file system does not lock files: {why}",
        where=lock.parent,
        remedy=(
            "Without locks, two processes could write the same files at once. Have it mounted "
            "with locks (Lustre: with the option flock; NFS: with its lock service), or choose a "
            "place on another file system."
        ),
    )


@contextmanager
def claimed(lock: Path) -> Iterator[Holder | None]:
    """Hold a lock file: yields None, or who holds it already. The file stays.

    Raises LockError where locks keep nobody out.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = _acquired(lock, timeout=0)
    except Timeout:
        yield Holder.read(lock)
        return
    with held:
        Holder.me().write(lock)
        yield None


class FileLocks:
    """The locks of one process on the cache at `path`; of several, each makes shards of its own.

    part: of the cache, whose shards have numbers of their own. Another process that it is sent to
    has locks of its own. Raises LockError where locks keep nobody out.
    """

    def __init__(self, path: Path, part: str = "") -> None:
        self._path, self._part = path, part
        self._folder = path.with_name(f".{path.name}.locks")
        self._me = Holder.me()
        self._mine = f"build-{self._me.host}-{self._me.pid}"

    def __reduce__(self) -> tuple[type["FileLocks"], tuple[Path, str]]:
        return FileLocks, (self._path, self._part)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileLocks) and other.__reduce__() == self.__reduce__()

    def __hash__(self) -> int:
        return hash((self._path, self._part))

    def check(self) -> None:
        """Raise LockError where locks keep nobody out."""
        path = self._folder / f"check-{self._me.host}-{self._me.pid}"
        try:
            with self._acquired(path, timeout=0):
                pass
        finally:
            with suppress(OSError):
                self._remove(path)

    def part(self, name: str) -> "FileLocks":
        """The locks of a part of the cache, whose shards have numbers of their own."""
        return FileLocks(self._path, f"{name}-")

    def for_workers(self) -> "FileLocks":
        """What other processes that make shards for this one have."""
        return self

    def confirm(self) -> None:
        """Nothing: the system never gives to others what a process holds."""

    @contextmanager
    def preparing(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Nobody else lays out rows and columns meanwhile.

        waiting: told once, in a sentence, for whom this process has to wait.
        """
        if (holder := self._holder(PREPARE)) is not None:
            waiting(f"waiting for {holder}, which prepares {self._path}")
        with self._held(PREPARE, timeout=-1):
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts this process among those that make shards; to be entered while preparing.

        At the end nothing remains of it, nor of those that died.
        """
        with self._held(self._mine):
            try:
                yield
            finally:
                for entry in self._folder.glob("*"):
                    self._holder(entry.name)

    def require_alone(self, purpose: str) -> None:
        """Raise CacheBusyError, naming the holders, if another build is at work.

        To be called while preparing, so that none can join. purpose: what needs it.
        """
        if others := self.others():
            names = "; ".join(map(str, others))
            raise CacheBusyError(
                f"{purpose} needs the cache for itself, but another build is at work on it "
                f"({names})",
                where=self._path,
                remedy=(
                    "Wait until it is done, or stop it, and run this again. A process that died "
                    "holds nothing."
                ),
            )

    def others(self) -> list[Holder]:
        """The other processes that make shards."""
        names = (entry.name for entry in sorted(self._folder.glob("build-*")))
        found = (self._holder(name) for name in names if name != self._mine)
        return [holder for holder in found if holder is not None]

    @contextmanager
    def shard(self, shard: int) -> Iterator[Holder | None]:
        """Claim a shard: yields None if this process has it now, or else who has."""
        name = f"{self._part}shard-{shard}"
        with ExitStack() as stack:
            try:
                stack.enter_context(self._held(name))
                holder = None
            except Timeout:
                holder = Holder.read(self._folder / name)
            yield holder

    @contextmanager
    def _held(self, name: str, timeout: float = 0) -> Iterator[None]:
        path = self._folder / name
        with self._acquired(path, timeout):
            self._me.write(path)
            try:
                yield
            finally:
                self._remove(path)

    def _remove(self, lock: Path) -> None:
        lock.unlink(missing_ok=True)
        # Works for the last one to leave.
        with suppress(OSError):
            self._folder.rmdir()

    def _acquired(self, path: Path, timeout: float) -> AcquireReturnProxy[FileLock]:
        while True:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                return _acquired(path, timeout)
            except FileNotFoundError:
                # Another build removed the empty folder in between.
                continue
            except Timeout:
                raise
            except OSError as error:
                raise CacheWriteError(
                    f"it cannot be written: {error.strerror}",
                    where=self._path.parent,
                    remedy="A build keeps its locks there; choose another cache.path.",
                ) from error

    def _holder(self, name: str) -> Holder | None:
        """Who holds a lock; None if nobody does, whose lock file is then removed."""
        if not (self._folder / name).exists():
            return None
        try:
            with self._acquired(self._folder / name, timeout=0):
                (self._folder / name).unlink(missing_ok=True)
                return None
        except Timeout:
            return Holder.read(self._folder / name)
