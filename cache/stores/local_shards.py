"""Whole shards of caches in stores, kept in a folder on a local disk.

    FOLDER/NAME             a shard, named by what the ledger says of its bytes
    FOLDER/.NAME.partial    one that is being downloaded; its lock is held as long as it is
    FOLDER/.room            locked while somebody counts, makes room and takes it

All processes of a machine share the folder. Locks are the file system's own (flock): a shard is
downloaded by whoever has locked its partial file, and is never removed while somebody reads it,
which a shared lock says. What is left of a killed process is taken over by the next one.
"""

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cache.errors import CacheReadError, DamagedCacheError, RepaCacheError
from cache.file_layout import Layout
from cache.files import HeldFolder
from cache.shard_files import ShardFile
from cache.stores.object_rows import RANGE_BYTES, ShardObject

# Shards that a process downloads at the same time.
DOWNLOADS = 4
# Of the disk, that is left free if no bound is given.
SPARED = 0.1
# After which a full folder is looked at again.
FULL_SECONDS = 30.0


class KeptShard(ShardFile):
    """A shard on the local disk, which nobody removes as long as it is held."""

    def __init__(self, folder: HeldFolder, name: str, layout: Layout) -> None:
        super().__init__(folder, name, layout)
        # Who has just given it its name, or removes it, holds its lock for a moment.
        fcntl.flock(self._buffered, fcntl.LOCK_SH)
        if not os.fstat(self._buffered).st_nlink:
            raise self.missing()
        # When it was last used.
        os.utime(self._buffered)


@dataclass(frozen=True)
class Wanted:
    """A shard that is to be kept.

    place: how soon it is needed, the lowest number first; is_worth_room: whether another may be
    removed for it; source: gives it in the store; is_whole: whether a file is what was written;
    arrived: called once it is there.
    """

    name: str
    place: int
    is_worth_room: bool
    source: Callable[[], ShardObject]
    is_whole: Callable[[Path], bool]
    arrived: Callable[[], object]


class LocalShards:
    """The folder, and the threads that fill it.

    most_bytes: that all shards may take, by default all but a tenth of the disk; readers:
    processes of this machine that read the same caches; say: told, once, why no more are kept.
    Raises CacheReadError if there can be no such folder.
    """

    def __init__(
        self,
        folder: Path,
        most_bytes: int | None = None,
        *,
        readers: int = 1,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.readers = readers
        self._most_bytes, self._say = most_bytes, say
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = HeldFolder(folder)
        except OSError as error:
            raise CacheReadError(
                f"no shards can be kept there: {error.strerror}",
                where=folder,
                remedy="Choose another train.reading.local.",
            ) from error
        self._changing = threading.Lock()
        self._wanted: dict[object, Sequence[Wanted]] = {}
        self._own: set[str] = set()
        self._tried: set[str] = set()
        self._threads = 0
        self._is_usable, self._full_until = True, 0.0
        if most_bytes is not None:
            with _locked(self._folder.path / ".room", waits=True):
                # Of what there was under a larger bound.
                self._left_beside(0, lambda _: True)

    def open(self, name: str, layout: Layout) -> KeptShard | None:
        """A shard, if it is there; one that is damaged is removed."""
        try:
            return KeptShard(self._folder, name, layout)
        except DamagedCacheError:
            self.remove(name)
        except (RepaCacheError, OSError):
            # There is none, or somebody is just removing it, or the disk fails.
            return None
        return None

    def remove(self, name: str) -> None:
        """Remove a shard that is not what it should be."""
        with suppress(OSError):
            (self._folder.path / name).unlink(missing_ok=True)

    def own(self, names: Iterable[str]) -> None:
        """Shards of an array that is read: they are equally useful, and do not oust each other."""
        with self._changing:
            self._own.update(names)

    def want(self, who: object, shards: Sequence[Wanted]) -> None:
        """Fetch some shards, and no longer those that `who` wanted before."""
        with self._changing:
            self._wanted[who] = shards
            self._tried.clear()
            missing = min(DOWNLOADS, len(shards)) if self._is_usable else 0
            started, self._threads = missing - self._threads, max(self._threads, missing)
        for _ in range(started):
            threading.Thread(target=self._fetch_all, name="shards", daemon=True).start()

    def _fetch_all(self) -> None:
        while (wanted := self._next()) is not None:
            try:
                if self._fetch(wanted):
                    wanted.arrived()
            except RepaCacheError:
                # Who needs its rows asks for them, and gets the error if it lasts.
                continue
            except OSError as error:
                self._give_up(error)

    def _next(self) -> Wanted | None:
        """The shard that is needed next, or None, whereupon the thread ends."""
        with self._changing:
            every = [one for shards in self._wanted.values() for one in shards]
            is_full = time.monotonic() < self._full_until
            possible = (one for one in every if one.is_worth_room or not is_full)
            left = [one for one in possible if one.name not in self._tried]
            if not left or not self._is_usable:
                self._threads -= 1
                return None
            found = min(left, key=lambda one: one.place)
            self._tried.add(found.name)
            return found

    def _is_wanted(self, name: str) -> bool:
        with self._changing:
            return any(one.name == name for shards in self._wanted.values() for one in shards)

    def _give_up(self, error: OSError) -> None:
        with self._changing:
            is_first, self._is_usable = self._is_usable, False
        if is_first:
            self._say(
                f"{self._folder.path}: no more shards are kept ({error.strerror}); their rows are "
                "read from the store"
            )

    def _fetch(self, wanted: Wanted) -> bool:
        """Download a shard; whether it is there."""
        path = self._folder.path / wanted.name
        partial = path.with_name(f".{wanted.name}.partial")
        with _locked(partial) as file:
            if file is None:
                return False
            if path.exists():
                partial.unlink()
                return True
            try:
                is_there = self._download(wanted, file) and wanted.is_whole(partial)
            except BaseException:
                partial.unlink()
                raise
            if is_there:
                os.fsync(file)
                partial.rename(path)
            else:
                partial.unlink()
            return is_there

    def _download(self, wanted: Wanted, file: int) -> bool:
        """Fill a file; whether there was room for it, and it was wanted until the end."""
        source = wanted.source()
        if not self._take_room(file, source.size, may_remove=wanted.is_worth_room):
            return False
        for start in range(0, source.size, RANGE_BYTES):
            if not self._is_wanted(wanted.name):
                return False
            content = source.content(start, min(RANGE_BYTES, source.size - start))
            os.pwrite(file, content, start)
        return True

    def _take_room(self, file: int, size: int, *, may_remove: bool) -> bool:
        """Give a file its size, if there is room or somebody else's can be had."""
        with _locked(self._folder.path / ".room", waits=True):
            os.ftruncate(file, 0)
            left = self._left_beside(size, lambda name: may_remove or name not in self._own)
            if left >= 0:
                _allocate(file, size)
            elif not may_remove:
                self._full_until = time.monotonic() + FULL_SECONDS
            return left >= 0

    def _left_beside(self, size: int, may_remove: Callable[[str], bool]) -> int:
        """The bytes that a new shard leaves, for which the longest unused of others may go."""
        stats = self._stats()
        left = self._most_bytes or self._disk_bytes(stats.values())
        left -= sum(one.st_size for one in stats.values()) + size
        removable = (name for name in stats if not name.startswith(".") and may_remove(name))
        for name in sorted(removable, key=lambda name: stats[name].st_mtime_ns):
            if left >= 0:
                break
            if _removed(self._folder.path / name):
                left += stats[name].st_size
        return left

    def _stats(self) -> dict[str, os.stat_result]:
        """All files of the folder."""
        stats = {}
        for path in self._folder.path.iterdir():
            # Others are renamed meanwhile.
            with suppress(FileNotFoundError):
                stats[path.name] = path.stat()
        return stats

    def _disk_bytes(self, kept: Iterable[os.stat_result]) -> int:
        """What all shards may take, of the whole disk."""
        disk = shutil.disk_usage(self._folder.path)
        return round(sum(one.st_size for one in kept) + disk.free - SPARED * disk.total)


@contextmanager
def _locked(path: Path, *, waits: bool = False) -> Iterator[int | None]:
    """A file that nobody else has locked, or None if somebody has."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield file if _has_lock(file, waits=waits) and _is_at(file, path) else None
    finally:
        os.close(file)


def _has_lock(file: int, *, waits: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file still has its name, which who locked it before may have changed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _allocate(file: int, size: int) -> None:
    """Take a file's room on the disk at once, where the system has that."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _removed(path: Path) -> bool:
    """Remove a shard unless somebody reads it."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        if not _has_lock(file.fileno(), waits=False):
            return False
        path.unlink()
    return True
