"""Files that hold many images: finding them, reading at random places, telling when they change."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import BinaryIO, TypeVar, cast

from cache.stores.places import IN_FLIGHT
from cache.stores.requests import ObjectStream
from stages.encode.images.remote.paths import DataPath, RemotePath
from stages.encode.images.sources.source import SourceError, stamp_of
from stages.progress import progress

Item = TypeVar("Item")
Opened = TypeVar("Opened")

THREADS = 8
# Times as long as it computes: more than a busy machine makes of work that does not wait.
WAITING = 8.0
# Items for the threads, before it is tried again whether they are needed.
SPELL = 16

# Reads a number of bytes from an offset on.
ReadAt = Callable[[int, int], bytes]

WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class Archive:
    """A file as it was when its content was listed.

    size: bytes; changed: time of its last change in ns, or of a remote file as `Status` has it.
    """

    path: DataPath
    size: int
    changed: int

    @classmethod
    def at(cls, path: DataPath) -> "Archive":
        """The file as it is. Raises SourceError if it cannot be had."""
        try:
            if isinstance(path, RemotePath):
                status = path.stat()
                return cls(path.known(status), *status)
            found = path.stat()
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
        return cls(path, found.st_size, found.st_mtime_ns)

    @property
    def is_remote(self) -> bool:
        """Whether reading a part of it takes as long as reading much more."""
        return isinstance(self.path, RemotePath)

    @contextmanager
    def opened(self) -> Iterator[ReadAt]:
        """A function that reads from the file, for any number of threads.

        The file is opened for each use: there may be more files than a process can hold open.
        Raises SourceError if the file is gone or has changed, of a remote one the function does;
        it raises OSError.
        """
        if isinstance(self.path, RemotePath):
            yield partial(_read_remote, self.path)
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be opened: {error.strerror}.") from error
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
                raise SourceError(f"{self.path} changed while it was in use. Start again.")
            yield lambda start, count: _read_at(descriptor, start, count)
        finally:
            os.close(descriptor)

    @contextmanager
    def listed(self) -> Iterator[ReadAt]:
        """The same, for a listing: whatever cannot be read is a SourceError."""
        try:
            with self.opened() as read:
                yield read
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error}.") from error

    def for_library(self) -> Path | BinaryIO:
        """The file as libraries take it that read at places of their own choosing."""
        if not isinstance(self.path, RemotePath):
            return self.path
        read = partial(_read_remote, self.path)
        return cast("BinaryIO", ObjectStream(read, self.size))

    def stamp(self, *place: int) -> int:
        """A number that changes whenever the file does, and for another place in it.

        0 if nothing tells when it does.
        """
        return stamp_of(self.size, self.changed, *place) if self.changed else 0


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection, which would search millions of names for cycles again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_order(
    pool: Executor, work: Callable[[Item], Opened], items: Iterable[Item]
) -> Iterator[Opened]:
    """What `work` makes of each item, in order: by the threads of a pool as far as it waits.

    Where it does not, one thread is faster than several, which hand Python's lock to one another
    at every system call.
    """
    left = iter(items)
    for item in left:
        start, used = time.perf_counter(), time.thread_time()
        done = work(item)
        has_waited = time.perf_counter() - start > WAITING * (time.thread_time() - used)
        yield done
        if has_waited:
            yield from pool.map(work, islice(left, SPELL))


def opened_ahead(
    items: Sequence[Item],
    work: Callable[[Item], Opened],
    unit: str,
    *,
    is_remote: bool = False,
) -> Iterator[Opened]:
    """What `work` finds in each of many files, in order, with progress.

    What it reads lies far apart: where that takes time, threads wait for the disk together, and for
    the network always. is_remote: whether the files are remote.
    """
    threads = min(IN_FLIGHT, len(items)) if is_remote else THREADS
    with (
        ThreadPoolExecutor(max(threads, 1)) as pool,
        progress("listing", len(items), unit) as advance,
    ):
        for opened in pool.map(work, items) if is_remote else in_order(pool, work, items):
            yield opened
            advance(1, "")


def _read_at(descriptor: int, start: int, count: int) -> bytes:
    parts = []
    while count and (part := os.pread(descriptor, count, start)):
        parts.append(part)
        start, count = start + len(part), count - len(part)
    if count:
        raise OSError(f"the file ends at byte {start}, {count} bytes too early")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_remote(path: RemotePath, start: int, count: int) -> bytes:
    try:
        return path.read_range(start, count)
    except FileNotFoundError as error:
        raise SourceError(f"{path} is gone. Start again.") from error


def locate(path: DataPath | None) -> tuple[Archive, str]:
    """The archive that a path leads to, and the folder inside it, empty or with a slash behind.

    `train.zip/a/b` is the folder a/b in train.zip.
    """
    candidates: Sequence[DataPath] = () if path is None else (path, *path.parents)
    for candidate in candidates:
        if candidate.is_file():
            inside = PurePath(str(path)).relative_to(str(candidate)).as_posix()
            return Archive.at(candidate), "" if inside == "." else f"{inside}/"
    raise SourceError(f"no file {path}", where="dataset.path", remedy="Name the archive.")


def means_several(path: DataPath | None) -> bool:
    """Whether a path is a folder or a pattern, and not one file."""
    if path is None or path.is_file():
        return False
    if isinstance(path, RemotePath) and path.is_numbered:
        return True
    return path.is_dir() or bool(WILDCARDS & set(path.name))
