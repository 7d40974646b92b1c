"""Addresses of data sets, as `hf://datasets/OWNER/NAME/data`, called as pathlib calls paths.

Object stores and web servers are reached through obstore, all else through fsspec. Who somebody is
those libraries find by themselves; no address may tell it.
"""

import errno
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

import pydantic

from cache.stores.addresses import Address, is_web
from cache.stores.places import IN_FLIGHT, SCHEMES
from stages.encode.images.errors import SourceError
from stages.encode.images.remote.blocks import block_folder
from stages.encode.images.remote.filesystems import FileSystems
from stages.encode.images.remote.object_stores import ObjectStores
from stages.encode.images.remote.requests import (
    Entries,
    Status,
    Transport,
)
from stages.packages import is_installed, needs
from stages.setting_paths import SCHEME, addressed, anchored

# What comes first in an address, and has no folder around it: a bucket, a server, a repository.
HUB_ROOT = r"hf://(?:(?:datasets|spaces|buckets)/)?[^/]+/[^/]+"
ADDRESS = re.compile(rf"(?P<root>{HUB_ROOT}|(?!hf:)[a-z][\w+.-]*://[^/]*)(?:/(?P<key>.*))?")
# Of files that are numbered, as `train-{0000..1023}.tar` names them where nothing lists them.
NUMBERS = re.compile(r"\{(?P<first>\d{1,9})\.\.(?P<last>\d{1,9})\}")
MOST_NUMBERS = 1_000_000
# Of what is asked for at once, in requests of their own.
PART_BYTES = 8 << 20


@dataclass(frozen=True)
class Kept:
    """Where blocks are kept that were read, and how many bytes of them."""

    folder: Path
    most_bytes: float


class RemotePath(Address):
    """A file or folder at an address. May be sent to another process.

    status: of the file, if it is known already; kept: where what is read of it is kept, if it is.
    Methods raise SourceError for whatever a place refuses, and FileNotFoundError for what is not
    there.
    """

    def __init__(
        self, address: str, status: Status | None = None, kept: Kept | None = None
    ) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise ValueError(
                f"{address!r} is no address: expected s3://bucket/folder, https://host/file, "
                "hf://datasets/OWNER/NAME/folder, or one that fsspec knows"
            )
        super().__init__(match["root"], match["key"])
        self._status, self._kept = status, kept

    def __reduce__(self) -> tuple[type["RemotePath"], tuple[str, Status | None, Kept | None]]:
        return RemotePath, (str(self), self._status, self._kept)

    def _at(self, key: str) -> "RemotePath":
        return RemotePath(f"{self._root}/{key}", kept=self._kept)

    def keeping(self, kept: Kept | None) -> "RemotePath":
        """The same, of which what is read is kept."""
        return RemotePath(str(self), self._status, kept)

    def known(self, status: Status | None) -> "RemotePath":
        """The same, whose status need not be asked for."""
        return RemotePath(str(self), status, self._kept)

    @property
    def _transport(self) -> Transport:
        return _transport(self._root.partition("://")[0])

    def stat(self) -> Status:
        status = self._status or self._transport.status(str(self))
        if status is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", str(self))
        return status

    def is_file(self) -> bool:
        return self._status is not None or self._transport.status(str(self)) is not None

    def is_dir(self) -> bool:
        """Whether anything lies below it; servers of the web do not tell that."""
        is_listed = not is_web(self)
        return self._status is None and is_listed and bool(self.entries())

    def entries(self) -> Entries:
        """What is in the folder, by name: files with their status, and folders with none."""
        return self._transport.entries(str(self))

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is in the folder, sorted."""
        return ((self / name).known(status) for name, status in sorted(self.entries().items()))

    @property
    def is_numbered(self) -> bool:
        """Whether it names several files, by their numbers."""
        return NUMBERS.search(self.name) is not None

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Those of them whose names fit, or files by their numbers, which all have to be there."""
        if match := NUMBERS.search(pattern):
            return self._numbered(pattern, match)
        return (one for one in self.iterdir() if fnmatchcase(one.name, pattern))

    def _numbered(self, pattern: str, match: re.Match[str]) -> Iterator["RemotePath"]:
        before, after, digits = (
            pattern[: match.start()],
            pattern[match.end() :],
            len(match["first"]),
        )
        numbers = range(int(match["first"]), int(match["last"]) + 1)
        if not 0 < len(numbers) <= MOST_NUMBERS:
            raise SourceError(f"{match[0]} names {len(numbers):,} files", where=self)

        def found(number: int) -> RemotePath:
            path = self / f"{before}{number:0{digits}}{after}"
            try:
                return path.known(path.stat())
            except FileNotFoundError as error:
                raise SourceError("there is no such file", where=path) from error

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return iter(list(pool.map(found, numbers)))

    def walk_files(self, is_wanted: Callable[[str], bool]) -> Iterator["RemotePath"]:
        """All files below it. is_wanted: whether one of that name counts, or is gone into."""
        for name, status in sorted(self.entries().items()):
            if is_wanted(name) and status is None:
                yield from (self / name).walk_files(is_wanted)
            elif is_wanted(name):
                yield (self / name).known(status)

    def read_bytes(self) -> bytes:
        return self.read_range(0, self.stat().size)

    def read_range(self, start: int, count: int) -> bytes:
        """So many bytes from a place on, many parts at once if they are many.

        Raises SourceError if the file is another than its status tells, or has fewer.
        """
        status = self.stat()
        if start < 0 or start + count > status.size:
            raise OSError(f"the file ends at byte {status.size}, before byte {start + count}")
        if not count:
            return b""
        if self._kept is None:
            return self._fetched(start, count)
        blocks = block_folder(self._kept.folder, self._kept.most_bytes)
        return blocks.read(str(self), status, start, count, self._fetched)

    def _fetched(self, start: int, count: int) -> bytes:
        read, address, status = self._transport.read, str(self), self.stat()
        if count <= PART_BYTES:
            return read(address, start, count, status)
        starts = range(start, start + count, PART_BYTES)

        def part(begin: int) -> bytes:
            return read(address, begin, min(PART_BYTES, start + count - begin), status)

        with ThreadPoolExecutor(min(IN_FLIGHT, len(starts))) as pool:
            return b"".join(pool.map(part, starts))


@cache
def _transport(scheme: str) -> Transport:
    if scheme not in SCHEMES:
        return FileSystems()
    if not is_installed("obstore"):
        raise SourceError(f"{scheme}:// {needs('obstore')}", where="dataset.path")
    return ObjectStores()


def _read(written: object, info: pydantic.ValidationInfo) -> object:
    if not isinstance(written, str) or not SCHEME.match(written):
        return anchored(written, info)
    address = addressed(written, info)
    parts = urlsplit(address)
    if parts.password is not None or (is_web(address) and "?" in address):
        raise ValueError(
            "an address tells neither passwords nor, behind a question mark, signatures; they are "
            "found in the environment, or where the tools of that place leave them"
        )
    return RemotePath(address)


_Address = Annotated[
    pydantic.InstanceOf[RemotePath],
    pydantic.PlainSerializer(str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "uri"}),
]
DataPath: TypeAlias = Path | RemotePath
# What `[dataset]` names: a path relative to the folder of the configuration, or an address.
AnchoredDataPath = Annotated[_Address | Path, pydantic.BeforeValidator(_read)]
