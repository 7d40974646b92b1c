"""Files that hold many images: finding them, reading at random places, telling when they change."""

import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from stages.encode.images.sources.source import SourceError, stamp_of
from stages.encode.images.waiting import in_order
from stages.progress import progress

Item = TypeVar("Item")
Opened = TypeVar("Opened")

THREADS = 8

# Reads a number of bytes from an offset on.
ReadAt = Callable[[int, int], bytes]

# How names of files tell the splits of a data set apart.
SPLITS = ("train", "val", "test")
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})")
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


def files_of(path: Path | None, suffix: str) -> list[Archive]:
    """The files of one split, sorted by name: a file, those in a folder, or those of a pattern."""
    if path is None or not means_several(path):
        return [locate(path)[0]]
    folder, pattern = (path, f"*{suffix}") if path.is_dir() else (path.parent, path.name)
    found = sorted(folder.glob(pattern))
    files = [file for file in found if not file.name.startswith(".") and not file.is_dir()]
    if not files:
        raise SourceError(
            f"dataset.path: no {suffix} files at {path}; compressed ones are not read."
        )
    splits = {split_of(file.name) for file in files}
    if len(splits) > 1:
        named = ", ".join(sorted(splits))
        wanted = next(split for split in SPLITS if split in splits)
        raise SourceError(
            f"dataset.path: the files at {path} are of several splits: {named}. "
            f'Name one by a pattern: path = "{folder}/*{wanted}*{suffix}".'
        )
    return [Archive.at(file) for file in files]


def split_of(name: str) -> str:
    """The split that a file belongs to by its name."""
    match = SPLIT.search(name)
    return match[0] if match else "other"
