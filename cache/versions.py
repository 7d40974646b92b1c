"""Several files of a cache as they were at one moment, although a build replaces them.

The row table, and a column that is made anew, are replaced as whole folders. Whoever reads such a
folder file by file may meet the old one first and then the new one; its `zarr.json`, another file
in each, tells.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cache.errors import CacheReadError, CacheReplacedError
from cache.files import HeldFolder, standing

# A folder is written in more time than it is read in: even the second attempt rarely fails.
ATTEMPTS = 200
PAUSE_SECONDS = 0.01

Found = TypeVar("Found")
# Where a group stands, and inode and time of its zarr.json; None where there is no group.
Version = tuple[str, int, int] | None


def of_one_version(read: Callable[[], Found], *groups: Path) -> Found:
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


def versions(*groups: Path) -> tuple[Version, ...]:
    """What changes when one of some Zarr groups is replaced by another."""
    return tuple(map(_version, groups))


def _version(group: Path) -> Version:
    try:
        # Held, so that a network file system does not go by what it remembers.
        folder = HeldFolder(group.parent)
        place = standing(folder.path / group.name)
        status = (place / "zarr.json").stat()
    except (OSError, CacheReplacedError):
        return None
    return place.name, status.st_ino, status.st_mtime_ns
