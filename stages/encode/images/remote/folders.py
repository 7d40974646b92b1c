"""Class folders at an address: what is in them, and single images of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.encode.images.remote.paths import RemotePath
from stages.encode.images.remote.requests import Status


@dataclass(frozen=True)
class RemoteEntry:
    """What is in a folder, as `os.scandir` tells it. status: None of a folder."""

    path: str
    status: Status | None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.status is None

    def is_symlink(self) -> bool:
        """Nothing is: links are of disks."""
        return False


def remote_entries(folder: RemotePath) -> dict[str, RemoteEntry]:
    """What is in a folder, by name and sorted. Raises SourceError if it cannot be listed."""
    found = sorted(folder.entries().items())
    return {name: RemoteEntry(str(folder / name), status) for name, status in found}


class RemoteImages:
    """Files in a folder, by their positions. keys: [N]; statuses: [N], as they were listed."""

    def __init__(self, folder: RemotePath, keys: Sequence[str], statuses: Sequence[Status]) -> None:
        self._folder, self._keys = folder, keys
        self._sizes = np.array([one.size for one in statuses], np.int64)
        self._changed = np.array([one.changed for one in statuses], np.uint64)

    def read(self, index: int) -> bytes:
        """As `Source.read`."""
        status = Status(int(self._sizes[index]), int(self._changed[index]))
        return (self._folder / self._keys[index]).known(status).read_bytes()

    def stamp(self, index: int) -> int:
        """As `Source.stamp`: what the listing said, so that no file is asked for."""
        return int(self._changed[index])
