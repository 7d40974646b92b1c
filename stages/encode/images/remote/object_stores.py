"""Files in object stores and on web servers, through obstore."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from cache.errors import CacheReadError
from cache.stores.addresses import is_web
from cache.stores.places import StorePath
from cache.stores.requests import asked
from stages.encode.images.errors import SourceError
from stages.encode.images.remote.requests import (
    REFUSED,
    Entries,
    Status,
    changed_by,
    changed_error,
    rangeless_error,
    unlisted_error,
)

# How it tells of listings that are refused.
DENIED = re.compile(r"status code: 40[13]\b")
# What the library says where a server tells no time.
NO_TIME = datetime.fromtimestamp(0, UTC)


class ObjectStores:
    """Those of Amazon, Google, Azure and all that speak like these; web servers, of which files
    are known by name alone.
    """

    def entries(self, address: str) -> Entries:
        """As `Transport.entries`."""
        from obstore import list_with_delimiter

        folder = _place(address)
        if is_web(address):
            raise unlisted_error(address)
        prefix = f"{folder.key}/" if folder.key else ""
        with _told(address):
            found = asked(address, lambda: list_with_delimiter(folder.store, prefix))
        below: dict[str, Status | None] = {
            PurePosixPath(key).name: None for key in found["common_prefixes"]
        }
        # Some tools make folders by empty objects called like them, with a slash behind.
        files = (one for one in found["objects"] if one["path"] != folder.key)
        return below | {PurePosixPath(one["path"]).name: _status(one) for one in files}

    def status(self, address: str) -> Status | None:
        """As `Transport.status`."""
        from obstore import head

        place = _place(address)
        if not place.key:
            return None
        with _told(address):
            try:
                return _status(asked(address, lambda: head(place.store, place.key)))
            except FileNotFoundError:
                return None

    def read(self, address: str, start: int, count: int, status: Status) -> bytes:
        """As `Transport.read`."""
        from obstore import get

        place, span = _place(address), (start, start + count)

        def part() -> bytes:
            found = get(place.store, place.key, options={"range": span})
            if _status(found.meta) != status:
                raise changed_error(address)
            content = bytes(found.bytes())
            if len(content) != count:
                raise EOFError(f"{len(content)} of {count} bytes arrived")
            return content

        with _told(address):
            return asked(address, part)


def _place(address: str) -> StorePath:
    """As the library wants it: it writes what servers of web pages cannot read in their way."""
    return StorePath(unquote(address) if is_web(address) else address)


def _status(found: Mapping[str, Any]) -> Status:
    # Not the version, which some tell of a file and not in a listing, where others write no quotes.
    tag = (found["e_tag"] or "").removeprefix("W/").strip('"')
    time = found["last_modified"].replace(microsecond=0)
    return Status(found["size"], changed_by(tag or (time != NO_TIME and time)))


@contextmanager
def _told(address: str) -> Iterator[None]:
    """In which errors of a store are those of a data set."""
    from obstore.exceptions import NotSupportedError

    try:
        yield
    except CacheReadError as error:
        if isinstance(error.__cause__, NotSupportedError):
            raise rangeless_error(address) from error
        remedy = REFUSED if DENIED.search(error.what) else error.remedy
        raise SourceError(error.what, where=address, remedy=remedy) from error
