"""Files and folders that are there whole or not at all, also after a crash.

Everything is written aside, under a hidden name that tells the host and process, synced to
disk and then renamed. What a killed process left aside is removed by whoever owns the place
next.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write: on success synced to disk and renamed to `path`, on error removed."""
    aside = _aside(path)
    try:
        with aside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill: on success synced to disk and renamed to `path`, on error removed.

    A folder that is already there is replaced. Between the two renames that takes, `standing`
    tells where it is; killed there, `recover` has to bring it back.
    """
    aside, replaced = _aside(path), _replaced(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for entry in (aside, *aside.rglob("*")):
            sync(entry)
        if path.exists():
            path.rename(replaced)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        recover(path)
        raise
    sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def standing(path: Path) -> Path:
    """Where the folder at `path` is: aside while it is being replaced."""
    replaced = _replaced(path)
    return replaced if not path.exists() and replaced.exists() else path


@contextmanager
def opened_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder. Network file systems then look up anew what is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def recover(path: Path) -> None:
    """Bring back the folder at `path`, if a process was killed while it replaced it."""
    if _replaced(path).exists() and not path.exists():
        _replaced(path).rename(path)
    shutil.rmtree(_replaced(path), ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a killed process leaves it whole, or hidden for the next owner."""
    aside = _aside(path)
    path.rename(aside)
    sync(path.parent)
    shutil.rmtree(aside)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left aside in a folder, for files or folders of a name."""
    for entry in folder.glob(f".{name}.partial"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file in one step."""
    with atomic_file(path) as stream:
        stream.write(content)


def start_writeback(stream: BinaryIO, start: int, size: int) -> None:
    """Have the system write bytes of a file to the disk from now on, not when all are there."""
    stream.flush()
    if hasattr(os, "posix_fadvise"):
        # Dirty pages cannot be dropped: on Linux this queues them for writing and returns.
        os.posix_fadvise(stream.fileno(), start, size, os.POSIX_FADV_DONTNEED)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
