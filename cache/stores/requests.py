"""Requests to object stores: how they are opened, asked again, and what their errors tell.

Credentials and endpoints are found as the store's own tools find them, in the environment or on
the machine; nothing here tells of them.
"""

import asyncio
import io
import os
import re
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

from cache.errors import CacheReadError

# What may be signed, in an address that an error tells of, and what a server answers beside its
# reasons: keys and signatures among it.
QUERY = re.compile(r"\?[^\s)\"']*")
ANSWER, REASON = re.compile(r"(?:<\?xml|<Error>).*", re.DOTALL), re.compile(r"<Message>([^<]*)")
# Of what the library does by itself when a server is busy or a connection breaks.
RETRIES: Any = {
    "max_retries": 8,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
    "retry_timeout": timedelta(minutes=2),
}
CLIENT: Any = {
    "allow_http": True,
    "connect_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=30),
}
# In an error of the library: of an answer that arrived cut short and was not asked for again.
CUT = re.compile(r"Error (?:performing|getting list)(?!.* retries).* body error")
# Attempts to read what arrived cut short, and the first pause between them in seconds.
ATTEMPTS, PAUSE_SECONDS = 6, 0.1

# That a file's buffer asks for at once.
STREAM_BYTES = 8 << 20

Found = TypeVar("Found")
# The process that has used the library, if any has.
_users: set[int] = set()


class StoreError(CacheReadError):
    """What a store answered, with the address that was asked for."""

    remedy = (
        "Look at the network, and at what the environment says of the store and who you are "
        "(AWS_ACCESS_KEY_ID ...; for public buckets AWS_SKIP_SIGNATURE=true)."
    )

    def __init__(self, address: str, error: Exception) -> None:
        # Behind the first paragraph the library shows its own structures.
        told = str(error).partition("\n\n")[0]
        told = ANSWER.sub(lambda answer: " ".join(REASON.findall(answer[0])), told)
        super().__init__(" ".join(QUERY.sub("", told).split()).rstrip("."), where=address)


def opened(root: str) -> Any:
    """What the library reads and writes a bucket with. root: its address."""
    process = os.getpid()
    if _users.difference({process}):
        raise CacheReadError(
            "this process was forked from one that reads a store, whose threads it lacks",
            where=root,
            remedy="Start it by 'forkserver' or 'spawn' (DataLoader: multiprocessing_context).",
        )
    _users.add(process)
    return _opened(root)


@lru_cache
def _opened(root: str) -> Any:
    try:
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise CacheReadError(
            "object stores need the package obstore, which is not installed",
            where=root,
            remedy="Run `pip install 'repa-cache[stores]'`.",
        ) from error
    return from_url(root, retry_config=RETRIES, client_options=CLIENT)


def asked(address: str, ask: Callable[[], Found]) -> Found:
    """What a store answers; asked again, after growing pauses, if it arrives cut short.

    address: that errors tell. Raises FileNotFoundError, FileExistsError or StoreError.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is nothing at {address}") from None
        except AlreadyExistsError:
            raise FileExistsError(f"there is something at {address} already") from None
        except EOFError as error:
            if attempt == ATTEMPTS:
                raise StoreError(address, error) from error
        except BaseError as error:
            if attempt == ATTEMPTS or not CUT.search(str(error)):
                raise StoreError(address, error) from error
        time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


async def asked_by_zarr(ask: Callable[[], Awaitable[Found]]) -> Found:
    """The same for who reads by itself, and whose errors `cache.stores.places.reported` tells."""
    from obstore.exceptions import BaseError

    for attempt in range(1, ATTEMPTS):
        try:
            return await ask()
        except BaseError as error:
            if not CUT.search(str(error)):
                raise
        await asyncio.sleep(PAUSE_SECONDS * 2**attempt)
    return await ask()


class ObjectStream(io.RawIOBase):
    """An object as a file that is read from any place. read_range: so many bytes from one on."""

    def __init__(self, read_range: Callable[[int, int], bytes | memoryview], size: int) -> None:
        self._read_range, self._size, self._place = read_range, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        if count:
            buffer[:count] = self._read_range(self._place, count)
        self._place += count
        return count
