"""Files that hold many images: finding them, reading at random places, telling when they change."""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

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

    size: bytes; changed: time of its last change in ns.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> "Archive":
        """The file as it is. Raises SourceError if it cannot be had."""
        try:
            status = path.stat()
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}.") from error
        return cls(path, status.st_size, status.st_mtime_ns)

    @contextmanager
    def opened(self) -> Iterator[ReadAt]:
        """A function that reads from the file, for any number of threads.

        The file is opened for each use: there may be more files than a process can hold open.
        Raises SourceError if the file is gone or has changed; the function raises OSError.
        """
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

    def stamp(self, *place: int) -> int:
        """A number that changes whenever the file does, and for another place in it."""
        return stamp_of(self.size, self.changed, *place)


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
    items: Sequence[Item], work: Callable[[Item], Opened], unit: str
) -> Iterator[Opened]:
    """What `work` finds in each of many files, in order, with progress.

    What it reads lies far apart: where that takes time, threads wait for the disk together.
    """
    with ThreadPoolExecutor(THREADS) as pool, progress("listing", len(items), unit) as advance:
        for opened in in_order(pool, work, items):
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


def locate(path: Path | None) -> tuple[Archive, str]:
    """The archive that a path leads to, and the folder inside it, empty or with a slash behind.

    `train.zip/a/b` is the folder a/b in train.zip.
    """
    candidates = () if path is None else (path, *path.parents)
    for candidate in candidates:
        if candidate.is_file():
            inside = Path(path or "").relative_to(candidate).as_posix()
            return Archive.at(candidate), "" if inside == "." else f"{inside}/"
    raise SourceError(f"no file {path}", where="dataset.path", remedy="Name the archive.")


def means_several(path: Path | None) -> bool:
    """Whether a path is a folder or a pattern, and not one file."""
    if path is None or path.is_file():
        return False
    return path.is_dir() or bool(WILDCARDS & set(path.name))
