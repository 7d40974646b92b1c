"""Making the shards of columns: crop, encode, write, each while the others work.

Crops are decoded ahead by a pool of threads, one thread feeds the device, and another one writes.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar

import numpy as np
from rich.filesize import decimal

from cache import ledger
from cache.errors import DamagedCacheError, IncompleteCacheError
from cache.layout import Column
from cache.locking.locks import Holder, ShardLocks
from cache.reader import PartialReader
from cache.writer import ShardWriter
from stages.encode.building.columns import Maker
from stages.encode.building.encoding_device import Device, Encoded, Job
from stages.encode.building.token_batches import Batch, Reader
from stages.progress import Advance, say

Item = TypeVar("Item")
Work = Sequence[tuple[Column, Maker]]

# Batches that are computed or written, or wait for either, before the next one is begun.
BATCHES_IN_FLIGHT = 4
# How often a build that has nothing left to claim looks whether the others are done.
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Counts:
    """Work that was done.

    shards: of all columns; bytes: before compression; device, disk: seconds in which they were
    busy; decoding: seconds in which the device had to wait for crops; encoded, seconds: images,
    and the device's seconds for them, by column and name of the device.
    """

    images: int = 0
    shards: int = 0
    bytes: int = 0
    device: float = 0.0
    decoding: float = 0.0
    disk: float = 0.0
    encoded: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __add__(self, other: "Counts") -> "Counts":
        names = (own.name for own in fields(self))
        return Counts(*(getattr(self, name) + getattr(other, name) for name in names))

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


def make_all(shards: Sequence[int], make: Callable[[Sequence[int]], Mapping[int, Holder]]) -> None:
    """Have shards made, and wait for those that other processes make.

    make: makes shards, and returns those that other processes have claimed.
    """
    known: set[Holder] = set()
    while shards:
        claimed = make(shards)
        for holder in set(claimed.values()) - known:
            say(f"sharing the work with {holder}")
        known.update(claimed.values())
        if claimed:
            time.sleep(POLL_SECONDS)
        shards = sorted(claimed)


@dataclass(frozen=True)
class ShardEncoder:
    """Makes shards of columns that nobody else is making."""

    work: Work
    reader: Reader
    device: Device
    meter: Meter
    locks: ShardLocks

    def encode(self, shards: Sequence[int]) -> dict[int, Holder]:
        """Make shards of all columns that lack them, reading each image once.

        Returns those that other processes have claimed. If it raises, shards that are not
        finished leave nothing behind.
        """
        claimed: dict[int, Holder] = {}
        writes: deque[Future[None]] = deque()
        with ExitStack() as files, ExitStack() as stack:
            # Should anything fail, what is computed is written nevertheless.
            disk = stack.enter_context(ThreadPoolExecutor(1))
            opened = self._opened(shards, claimed, files)
            batches = stack.enter_context(closing(self.reader.tagged_batches(opened)))
            for shard, batch in self.meter.decoded(batches):
                if len(writes) == BATCHES_IN_FLIGHT:
                    writes.popleft().result()
                jobs = shard.jobs(batch)
                made = self.device.encode(batch, jobs)
                writes.append(disk.submit(self._write, shard, jobs, made, len(batch)))
            for write in writes:
                write.result()
        return claimed

    def _opened(
        self, shards: Sequence[int], claimed: dict[int, Holder], files: ExitStack
    ) -> Iterator[tuple["OpenShard", range]]:
        """Claims one shard after the other; gives those to be made, with the rows they lack.

        files: closes what is still open in the end.
        """
        for number in shards:
            own = files.enter_context(ExitStack())
            if holder := own.enter_context(self.locks.shard(number)):
                claimed[number] = holder
                own.close()
            elif lacking := self._lacking(number):
                yield self._open(number, lacking, own)
            else:
                self.meter.add(Counts(images=len(self.work[0][0].shard_rows(number))))
                own.close()

    def _lacking(self, number: int) -> Work:
        """The columns that do not have a shard, and their makers."""
        rows = self.reader.rows
        return [(c, maker) for c, maker in self.work if ledger.is_missing(c, rows, number)]

    def _open(self, number: int, work: Work, files: ExitStack) -> tuple["OpenShard", range]:
        columns = [column for column, _ in work]
        span = columns[0].shard_rows(number)
        images = self.reader.rows.digest(span)
        writers = {}
        for column in columns:
            writers[column.name] = files.enter_context(ShardWriter(column, number, images))
            self._keep_finished_rows(column, number, writers[column.name])
        kept = {name: writer.written for name, writer in writers.items()}
        first = min(kept.values())
        self.meter.add(Counts(images=first))
        return OpenShard(work, writers, files, kept, len(span), first), span[first:]

    def _write(
        self, shard: "OpenShard", jobs: Sequence[Job], encoded: Encoded, images: int
    ) -> None:
        """Write a batch, and with the last one finish the shard."""
        made, seconds = encoded.wait()
        with self.meter.spending("disk"):
            for job, arrays in zip(jobs, made, strict=True):
                shard.writers[job.column.name].write(arrays)
            if shard.is_written:
                self.locks.confirm()
                shard.files.close()
                self.meter.add(Counts(shards=len(shard.work)))
        written = sum(array.nbytes for arrays in made for array in arrays.values())
        names = [(job.column.name, self.device.name) for job in jobs]
        rows = [len(next(iter(arrays.values()))) for arrays in made]
        self.meter.add(
            Counts(
                images=images,
                bytes=written,
                device=sum(seconds),
                encoded=Counter(dict(zip(names, rows, strict=True))),
                seconds=Counter(dict(zip(names, seconds, strict=True))),
            )
        )

    def _keep_finished_rows(self, column: Column, shard: int, writer: ShardWriter) -> None:
        """Copy the rows that were encoded before images were added to the shard."""
        count = ledger.finished_rows(column, self.reader.rows, shard)
        span = column.shard_rows(shard)[:count]
        try:
            reader = PartialReader(column)
            for start in range(span.start, span.stop, self.reader.batch_size):
                rows = np.arange(start, min(start + self.reader.batch_size, span.stop))
                writer.write(reader.read(rows))
        except (DamagedCacheError, IncompleteCacheError, OSError):
            # Whatever cannot be copied is encoded again.
            return


@dataclass
class OpenShard:
    """A shard that is being made.

    files: the claim and the files, which finish the shard when they are closed; kept: rows that
    columns had before; rows: that it will have; begun: those that the device was given.
    """

    work: Work
    writers: Mapping[str, ShardWriter]
    files: ExitStack
    kept: Mapping[str, int]
    rows: int
    begun: int

    @property
    def is_written(self) -> bool:
        """Whether all rows of all columns are in the files."""
        return all(writer.written == self.rows for writer in self.writers.values())

    def jobs(self, batch: Batch) -> list[Job]:
        """What to make of the next batch: columns that do not have its rows yet."""
        done = [max(self.kept[column.name] - self.begun, 0) for column, _ in self.work]
        self.begun += len(batch)
        return [
            Job(column, maker, count)
            for (column, maker), count in zip(self.work, done, strict=True)
            if count < len(batch)
        ]
