"""Places in object stores, as `s3://bucket/imagenet256.zarr`, called as pathlib calls files.

A store knows whole objects by their keys, and no folders: a folder is there as long as an object
lies below it. Writing an object is one step: readers see what was there before, or all of it.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar

from cache.errors import CacheReadError, RepaCacheError
from cache.stores.addresses import Address, is_web
from cache.stores.requests import STREAM_BYTES, ObjectStream, StoreError, asked, opened

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")
ADDRESS = re.compile(rf"(?P<root>(?:{'|'.join(SCHEMES)})://[^/]+)(?:/(?P<key>.*))?")
# Of small objects that are asked for at the same time.
IN_FLIGHT = 64
Item = TypeVar("Item")
Found = TypeVar("Found")


class AddressError(RepaCacheError):
    """An address that nothing can be at."""


@dataclass(frozen=True)
class ObjectStatus:
    """What a store says of an object. version: changes whenever its content does."""

    st_size: int
    version: str


def is_address(text: str) -> bool:
    """Whether a text is the address of a place in a store, and no path."""
    return ADDRESS.fullmatch(text) is not None


class StorePath(Address):
    """A place in a store, which may be an object or a folder of objects.

    Has of pathlib's methods those that caches need. They raise FileNotFoundError where there is no
    object, and StoreError for whatever else a store refuses. May be sent to another process.
    """

    def __init__(self, address: str) -> None:
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise AddressError(f"{address!r} is no address in a store, as s3://bucket/name")
        super().__init__(match["root"], match["key"])

    def __reduce__(self) -> tuple[type["StorePath"], tuple[str]]:
        return StorePath, (str(self),)

    @property
    def key(self) -> str:
        """Its name within the bucket."""
        return self._key

    def absolute(self) -> "StorePath":
        return self

    def with_name(self, name: str) -> "StorePath":
        return self.parent / name

    def as_posix(self) -> str:
        return str(self)

    def _at(self, key: str) -> "StorePath":
        return StorePath(f"{self._root}/{key}")

    @property
    def store(self) -> Any:
        """What the library reads and writes this place's bucket with."""
        return opened(self._root)

    def stat(self) -> ObjectStatus:
        from obstore import head

        found = asked(str(self), lambda: head(self.store, self._key))
        version = found["version"] or found["e_tag"] or found["last_modified"].isoformat()
        return ObjectStatus(found["size"], version)

    def is_file(self) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        from obstore import list as listed

        self._check_lists()
        pages = partial(listed, self.store, self._prefix, chunk_size=1)
        return bool(asked(str(self), lambda: next(pages(), None)))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def read_bytes(self) -> bytes:
        from obstore import get

        def read() -> bytes:
            found = get(self.store, self._key)
            content = bytes(found.bytes())
            if len(content) != found.meta["size"]:
                raise EOFError(f"{len(content)} of {found.meta['size']} bytes arrived")
            return content

        return asked(str(self), read)

    def read_range(self, start: int, size: int) -> memoryview:
        """So many bytes from a place on. Raises StoreError if there are fewer."""
        from obstore import get_range

        def read() -> memoryview:
            content = memoryview(get_range(self.store, self._key, start=start, length=size))
            if len(content) != size:
                raise EOFError(f"{len(content)} of {size} bytes arrived")
            return content

        return asked(str(self), read)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its content, of which parts are read as they are asked for."""
        if mode != "rb":
            raise ValueError(f"objects are written as a whole, not in mode {mode!r}")
        return io.BufferedReader(ObjectStream(self.read_range, self.stat().st_size), STREAM_BYTES)

    def put(self, content: bytes | Path, *, is_new: bool = False) -> None:
        """Write it in one step, of bytes or of a file.

        is_new: whether one that is there already is a FileExistsError.
        """
        from obstore import put

        mode: Literal["create", "overwrite"] = "create" if is_new else "overwrite"
        asked(str(self), lambda: put(self.store, self._key, content, mode=mode))

    def copy_to(self, other: "StorePath") -> None:
        """Have the store write another object of the same bucket with its content."""
        from obstore import copy

        asked(str(self), lambda: copy(self.store, self._key, other.key))

    def unlink(self, *, missing_ok: bool = False) -> None:
        if not missing_ok:
            self.stat()
        self._deleted([self._key])

    def tree(self) -> Iterator["StorePath"]:
        """All objects below it."""
        return (self._at(key) for key, _ in self._listed())

    def tree_bytes(self) -> int:
        """The size of all objects below it."""
        return sum(size for _, size in self._listed())

    def remove_tree(self) -> None:
        """Remove all objects below it."""
        self._deleted([key for key, _ in self._listed()])

    def iterdir(self) -> Iterator["StorePath"]:
        """The objects and folders in it, sorted."""
        from obstore import list_with_delimiter

        self._check_lists()
        found = asked(str(self), lambda: list_with_delimiter(self.store, self._prefix))
        keys = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return (self._at(key) for key in sorted(keys))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """Those in it whose names fit; with a slash behind, as pathlib has it, folders alone."""
        wanted = pattern.rstrip("/")
        entries = (entry for entry in self.iterdir() if fnmatchcase(entry.name, wanted))
        return (one for one in entries if one.is_dir()) if wanted != pattern else entries

    def _check_lists(self) -> None:
        """Raise CacheReadError for the address of a web server."""
        if is_web(self):
            raise CacheReadError(
                "a web server does not list what it has",
                where=str(self),
                remedy="Train from there, or run `repa-cache copy FROM TO --columns NAME...`.",
            )

    @property
    def _prefix(self) -> str:
        return f"{self._key}/" if self._key else ""

    def _listed(self) -> list[tuple[str, int]]:
        """The keys and sizes of all objects below it."""
        from obstore import list as listed

        self._check_lists()

        def found() -> list[tuple[str, int]]:
            pages = listed(self.store, self._prefix, chunk_size=1000)
            return [(one["path"], one["size"]) for page in pages for one in page]

        return asked(str(self), found)

    def _deleted(self, keys: list[str]) -> None:
        from obstore import delete

        if keys:
            try:
                asked(str(self), lambda: delete(self.store, keys))
            except FileNotFoundError:
                # Gone already.
                return


Place: TypeAlias = Path | StorePath


def place_of(text: str) -> Place:
    """The place that a text names: a path, or an address in a store."""
    return StorePath(text) if is_address(text) else Path(text)


def local_folder(place: Place) -> Path:
    """The folder that a place is in, or the working folder for one in a store."""
    return place.parent if isinstance(place, Path) else Path()


def for_zarr(place: Place) -> dict[str, Any]:
    """The arguments by which zarr finds a place."""
    if isinstance(place, Path):
        return {"store": place}
    from cache.stores.zarr_store import PatientStore

    # Without its version it would be asked for by the names of both.
    store = PatientStore(place.store, read_only=True)
    return {"store": store, "path": place.key, "zarr_format": 3}


@contextmanager
def reported(place: Place) -> Iterator[None]:
    """In an error of a library that reads by itself, the address that is known to the user."""
    if isinstance(place, Path):
        yield
        return
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise StoreError(str(place), error) from error


def for_each(work: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What `work` gives for each of some items, many of which wait for a store at once."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(IN_FLIGHT, len(items))) as pool:
        return list(pool.map(work, items))
