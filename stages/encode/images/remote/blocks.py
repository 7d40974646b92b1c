"""Blocks of remote files in a local folder, so that none is fetched twice.

Any number of processes may share a folder. A block is a file of its own, which appears when it is
whole and ends with a checksum.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from uuid import uuid4

import google_crc32c
import xxhash

from stages.encode.images.errors import SourceError
from stages.encode.images.remote.requests import Status

BLOCK_BYTES = 4 << 20
CHECKSUM_BYTES = 4
# Of a folder that is full, what is made free at once, so that it is rarely looked through.
FREED = 0.1
# After which a file that never became whole is one of a process that was killed.
ABANDONED_SECONDS = 3600
UNFINISHED = ".part"

# Gives so many bytes of a file from a place on.
Fetch = Callable[[int, int], bytes]


class BlockFolder:
    """Blocks of files, of which those go that were used longest ago if there are too many bytes."""

    def __init__(self, folder: Path, most_bytes: float) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = Lock()
        self._fetching: dict[Path, Future[bytes]] = {}
        self._checked: set[Path] = set()
        # None until the folder has been looked through.
        self._bytes_left: float | None = None

    def read(self, address: str, status: Status, start: int, count: int, fetch: Fetch) -> bytes:
        """A part of a file, of blocks that are there or are fetched.

        Raises what `fetch` does.
        """
        parts = []
        name = xxhash.xxh3_128_hexdigest(f"{address} {status.size} {status.changed}".encode())
        for number in range(start // BLOCK_BYTES, -(-(start + count) // BLOCK_BYTES)):
            begin = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, status.size - begin)
            path = self._folder / name[:2] / f"{name}-{number}"
            first, last = max(start - begin, 0), min(start + count - begin, size)
            parts.append(self._part(path, begin, size, slice(first, last), fetch))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, path: Path, begin: int, size: int, part: slice, fetch: Fetch) -> bytes:
        """A part of a block, which one thread fetches while others that want it wait."""
        if (kept := self._kept(path, size, part)) is not None:
            return kept
        with self._lock:
            future = self._fetching.get(path)
            is_mine = future is None
            future = future or self._fetching.setdefault(path, Future())
        if is_mine:
            try:
                block = fetch(begin, size)
                self._keep(path, block)
                future.set_result(block)
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._fetching[path]
        return future.result()[part]

    def _kept(self, path: Path, size: int, part: slice) -> bytes | None:
        """The same of a block in the folder; None if it is not there, or not as it was written."""
        try:
            with path.open("rb") as file:
                if path in self._checked:
                    found = os.pread(file.fileno(), part.stop - part.start, part.start)
                    if len(found) != part.stop - part.start:
                        return None
                else:
                    block = file.read()
                    if (
                        len(block) != size + CHECKSUM_BYTES
                        or _checksum(block[:size]) != block[size:]
                    ):
                        return None
                    self._checked.add(path)
                    found = block[part]
                os.utime(file.fileno())
        except OSError:
            return None
        return found

    def _keep(self, path: Path, block: bytes) -> None:
        """Write a block; a disk that takes no more is no reason to read nothing."""
        self._make_room(len(block) + CHECKSUM_BYTES)
        unfinished = path.with_name(f"{uuid4().hex}{UNFINISHED}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(block)
                file.write(_checksum(block))
            unfinished.replace(path)
            self._checked.add(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()

    def _make_room(self, count: int) -> None:
        with self._lock:
            if self._bytes_left is None or self._bytes_left < count:
                self._bytes_left = self._freed()
            self._bytes_left -= count

    def _freed(self) -> float:
        """Remove what was used longest ago, if the folder is nearly full; the bytes until it is."""
        found = []
        for path in self._folder.glob("??/*"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        used = sum(size for _, size, _ in found)
        enough = (1 - FREED) * self._most_bytes
        before = time.time() - ABANDONED_SECONDS
        for used_at, size, path in sorted(found):
            if used > enough or (path.suffix == UNFINISHED and used_at < before):
                path.unlink(missing_ok=True)
                self._checked.discard(path)
                used -= size
        # Others write too: what they did is seen before much more is written.
        return min(max(self._most_bytes - used, 0), FREED * self._most_bytes)


def block_folder(folder: Path, most_bytes: float) -> BlockFolder:
    """The blocks in a folder, as all threads of this process see them.

    Raises SourceError if there can be no such folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"{folder} cannot be made: {error.strerror}", where="dataset.local"
        ) from error
    return _block_folder(folder, most_bytes, os.getpid())


@lru_cache
def _block_folder(folder: Path, most_bytes: float, _process: int) -> BlockFolder:
    return BlockFolder(folder, most_bytes)


def _checksum(block: bytes) -> bytes:
    return int(google_crc32c.value(block)).to_bytes(CHECKSUM_BYTES, "little")
