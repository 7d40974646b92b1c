"""What a build does with its time: images, bytes, and what waits for what."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Literal, TypeVar

from rich.filesize import decimal

from stages.progress import Advance

Item = TypeVar("Item")


@dataclass(frozen=True)
class Counts:
    """Work that was done.

    shards: of all columns; bytes: before compression; device, disk: seconds in which they were
    busy; decoding: seconds in which the device had to wait for crops.
    """

    images: int = 0
    shards: int = 0
    bytes: int = 0
    device: float = 0.0
    decoding: float = 0.0
    disk: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def note(self, seconds: float) -> str:
        """The shares of a time, summed over devices, that were spent on what."""
        return (
            f"device busy {self.device / seconds:.0%}, waiting for images "
            f"{self.decoding / seconds:.0%}, writing {self.disk / seconds:.0%}, "
            f"{decimal(self.bytes)}"
        )


class Meter:
    """Counts what several threads do, and shows it beside the progress.

    advance: of the progress display, or None; devices: that are at work.
    """

    def __init__(self, advance: Advance | None = None, devices: int = 1) -> None:
        self._advance = advance
        self._devices = devices
        self._lock = threading.Lock()
        self._start = time.perf_counter()
        self.counts = Counts()

    def add(self, counts: Counts) -> None:
        """Count some more work."""
        with self._lock:
            self.counts += counts
            if self._advance is not None:
                self._advance(counts.images, self.counts.note(self._devices * self.seconds))

    @property
    def seconds(self) -> float:
        """Since work began."""
        return time.perf_counter() - self._start

    @contextmanager
    def spending(self, what: Literal["decoding", "disk"]) -> Iterator[None]:
        """The time of the block is counted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self.counts += Counts(**{what: seconds})  # type: ignore[arg-type]

    def decoded(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches, with the time it takes until they come."""
        while True:
            with self.spending("decoding"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
