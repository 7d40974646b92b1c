"""Files and folders that are there whole or not at all, or as they were at one moment.

Everything is written aside, under a hidden name that tells the host and process, synced to
disk and then renamed. What a killed process left aside is removed by whoever owns the place
next.

The row table, and a column that is made anew, are replaced as whole folders. Whoever reads such a
folder file by file may meet the old one first and then the new one; its `zarr.json`, another file
in each, tells.
"""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, TypeVar, overload

from cache.errors import CacheReadError, CacheReplacedError
from cache.stores import files as store_files
from cache.stores.places import Place, StorePath

# A folder is written in more time than it is read in: even the second attempt rarely fails.
ATTEMPTS = 200
PAUSE_SECONDS = 0.01

Found = TypeVar("Found")
# Where a group stands, and what tells its zarr.json from others; None where there is no group.
Version = tuple[str, str] | None


@contextmanager
def atomic_file(path: Place) -> Iterator[BinaryIO]:
    """A file to write: on success synced to disk and renamed to `path`, on error removed."""
    if isinstance(path, StorePath):
        with store_files.uploaded_file(path) as stream:
            yield stream
        return
    aside = _aside(path)
    with _named(path, aside):
        stream = aside.open("wb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(path: Place) -> Iterator[Path]:
    """A folder to fill: on success synced to disk and renamed to `path`, on error removed.

    A folder that is already there is replaced. Between the two renames that takes, `standing`
    tells where it is; killed there, `recover` has to bring it back.
    """
    if isinstance(path, StorePath):
        with store_files.uploaded_folder(path) as folder:
            yield folder
        return
    aside, replaced = _aside(path), _replaced(path)
    shutil.rmtree(aside, ignore_errors=True)
    with _named(path, aside):
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


@overload
def standing(path: Path) -> Path: ...
@overload
def standing(path: StorePath) -> StorePath: ...
def standing(path: Place) -> Place:
    """Where the folder at `path` is: aside while it is being replaced."""
    if isinstance(path, StorePath):
        return store_files.standing(path)
    replaced = _replaced(path)
    return replaced if not path.exists() and replaced.exists() else path


class HeldFolder:
    """A folder that stays the same one, although another may take its place.

    Raises CacheReplacedError if that has happened, when it is sent to another process or when a
    file is no longer in it. On a network file system, names are looked up anew once it is open.
    """

    def __init__(self, path: Path, identity: tuple[int, int] | None = None) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._identity = identity or _identity(os.fstat(self._descriptor))
        if self._is_replaced():
            raise self._replaced()

    def __reduce__(self) -> tuple[type["HeldFolder"], tuple[Path, tuple[int, int]]]:
        return HeldFolder, (self.path, self._identity)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of a file in it."""
        try:
            return os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            if self._is_replaced():
                raise self._replaced() from error
            raise

    def _is_replaced(self) -> bool:
        try:
            return _identity(self.path.stat()) != self._identity
        except FileNotFoundError:
            return True

    def _replaced(self) -> CacheReplacedError:
        return CacheReplacedError("it was made anew while it was read", where=self.path)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def recover(path: Place) -> None:
    """Bring back the folder at `path`, if a process was killed while it replaced it."""
    if isinstance(path, StorePath):
        store_files.recover(path)
        return
    if _replaced(path).exists() and not path.exists():
        _replaced(path).rename(path)
    shutil.rmtree(_replaced(path), ignore_errors=True)


def remove_folder(path: Place) -> None:
    """Remove a folder so that a killed process leaves it whole, or hidden for the next owner."""
    if isinstance(path, StorePath):
        store_files.remove_folder(path)
        return
    aside = _aside(path)
    path.rename(aside)
    sync(path.parent)
    shutil.rmtree(aside)


def remove_leftovers(folder: Place, name: str = "*") -> None:
    """Remove what killed processes left aside in a folder, for files or folders of a name."""
    if isinstance(folder, StorePath):
        # Nothing of an object is there before all of it is.
        return
    for entry in folder.glob(f".{name}.partial"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _named(path: Path, aside: Path) -> Iterator[None]:
    """In an error of the system, the name that its reader knows."""
    try:
        yield
    except OSError as error:
        if error.filename == str(aside):
            error.filename = str(path)
        raise


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def write_atomically(path: Place, content: bytes) -> None:
    """Write a small file in one step."""
    with atomic_file(path) as stream:
        stream.write(content)


@contextmanager
def landing_folder(folder: Place, name: str) -> Iterator[Path]:
    """A local folder for files that `put_in_place` moves into another; goes at the end.

    folder: that other one; name: of what is put into it.
    """
    if isinstance(folder, StorePath):
        with TemporaryDirectory() as local:
            yield Path(local)
        return
    aside = _aside(folder / name)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def put_in_place(file: Path, path: Place) -> None:
    """Have a file of a `landing_folder` be at `path`, in one step."""
    if isinstance(path, StorePath):
        path.put(file)
        return
    sync(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.rename(path)
    sync(path.parent)


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


def of_one_version(read: Callable[[], Found], *groups: Place) -> Found:
    """What `read` finds in some Zarr groups, none of which was replaced meanwhile.

    `read` is called again if one was, whether it came through or raised; groups: that may be
    replaced while they are read. Raises what `read` raises, and CacheReadError if there is no end
    to it.
    """
    for _ in range(ATTEMPTS):
        before = versions(*groups)
        try:
            found = read()
        except Exception:
            if versions(*groups) == before:
                raise
        else:
            if versions(*groups) == before:
                return found
        time.sleep(PAUSE_SECONDS)
    raise CacheReadError(
        f"it was replaced {ATTEMPTS} times while it was read",
        where=groups[0],
        remedy="Wait until the builds that are at work on it are done.",
    )


def versions(*groups: Place) -> tuple[Version, ...]:
    """What changes when one of some Zarr groups is replaced by another."""
    return tuple(map(_version, groups))


def _version(group: Place) -> Version:
    try:
        if isinstance(group, StorePath):
            found = store_files.standing(group)
            return found.name, (found / "zarr.json").stat().version
        # Held, so that a network file system does not go by what it remembers.
        folder = HeldFolder(group.parent)
        place = standing(folder.path / group.name)
        status = (place / "zarr.json").stat()
    except (OSError, CacheReplacedError):
        return None
    return place.name, f"{status.st_ino} {status.st_mtime_ns}"
