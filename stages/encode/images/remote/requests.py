"""What is asked of a place where remote files lie, whatever kind of place it is."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import xxhash

from stages.encode.images.errors import SourceError

REFUSED = (
    "Who you are is told by the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, "
    "AZURE_STORAGE_ACCOUNT_NAME), the machine's role or `hf auth login`, and has to be allowed to "
    "list and to read."
)


class Status(NamedTuple):
    """What is known of a file.

    size: bytes; changed: a number that changes whenever the content does, 0 if nothing tells.
    """

    size: int
    changed: int


# What is in a folder, by name: files with their status, and folders with none.
Entries = Mapping[str, Status | None]


class Transport(Protocol):
    """How the files of some addresses are reached.

    All raise SourceError if the place refuses or fails, with the address and never with what it is
    signed by; they ask again, after growing pauses, as long as that may help.
    """

    def entries(self, address: str) -> Entries:
        """What is in a folder; nothing if there is none."""
        ...

    def status(self, address: str) -> Status | None:
        """That of a file, None if there is none."""
        ...

    def read(self, address: str, start: int, count: int, status: Status) -> bytes:
        """So many bytes of a file with a known status, from a place on, at least one.

        Raises FileNotFoundError if it is gone, SourceError if it is another.
        """
        ...


def changed_by(version: object) -> int:
    """A number for what a place calls the version of a file: an etag, a digest, a time."""
    return xxhash.xxh3_64_intdigest(str(version).encode()) if version else 0


def changed_error(address: str) -> SourceError:
    """For a file that is another than was listed."""
    return SourceError("it changed while it was in use", where=address, remedy="Start again.")


def unlisted_error(address: str) -> SourceError:
    """For a place that tells only of files that are asked for by their names."""
    return SourceError(
        "there is no such file, and this server does not list what is in a folder",
        where=address,
        remedy="Name a file, as `https://host/train.zip`.",
    )


def rangeless_error(address: str) -> SourceError:
    """For a place that gives files as a whole only."""
    return SourceError(
        "the server gives no parts of a file, only all of it",
        where=address,
        remedy="Download it, and name the copy.",
    )
