"""Having the shards made that columns lack, here or on a cluster."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.filesize import decimal

from cache import ledger
from cache.errors import CacheWriteError
from cache.layout import Column
from cache.locking.locks import BuildLocks
from cache.rows import RowTable
from cache.storage import is_of_pixels
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.build_times import record_times
from stages.encode.building.columns import Maker
from stages.encode.building.encoding_device import Device
from stages.encode.building.shard_making import Counts, Meter, ShardEncoder, make_all
from stages.encode.building.token_batches import Reader
from stages.encode.images.sources import Source
from stages.progress import progress


@dataclass(frozen=True)
class Made:
    """Work that was done, and the seconds that it took."""

    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    def __add__(self, other: "Made") -> "Made":
        return Made(self.counts + other.counts, self.seconds + other.seconds)


@dataclass(frozen=True)
class ColumnMaking:
    """How the shards of a build are made, and by whom."""

    settings: EncodeSettings
    options: BuildOptions
    device: torch.device
    locks: BuildLocks

    def make(
        self,
        columns: Sequence[Column],
        makers: list[Maker],
        reader: Reader,
        source: Source | None = None,
        derived: str | None = None,
        unit: str = "images",
    ) -> Made:
        """Make what lacks of columns that share a reader.

        makers: emptied if workers need the memory of this machine's devices; source: the data
        set of a reader of crops; derived: the column of a reader of tokens, or what else is not
        made of crops; unit: what rows are. Raises CacheWriteError if the disk cannot hold the
        shards.
        """
        shards = _missing_shards(columns, reader.rows, self.options.shards)
        images = sum(len(columns[0].shard_rows(shard)) for shard in shards)
        with progress(derived or "build", images, unit) as advance, ExitStack() as stack:
            meter = Meter(advance, self.options.devices)
            stack.callback(self._record, columns, meter)
            if self.options.cluster is None:
                work = list(zip(columns, makers, strict=True))
                encoder = ShardEncoder(work, reader, Device(self.device), meter, self.locks)
                make_all(shards, encoder.encode)
            elif shards:
                from stages.encode.building.cluster import make_on_cluster  # most need no Dask

                # Workers on this machine need the memory of its devices.
                makers.clear()
                torch.cuda.empty_cache()
                cluster, failures = self.options.cluster, reader.failures
                locks = self.locks.for_workers()
                make_on_cluster(
                    shards, self.settings, source, locks, cluster, meter, failures, derived
                )
            return Made(meter.counts, meter.seconds)

    def _record(self, columns: Sequence[Column], meter: Meter) -> None:
        """Keep what networks took beside the recipes, if these are still this build's."""
        self.locks.confirm()
        record_times(columns, meter.counts)


def _missing_shards(columns: Sequence[Column], rows: RowTable, part: slice) -> list[int]:
    """The shards of a part of the cache that any column lacks.

    Raises CacheWriteError if the disk cannot hold them.
    """
    wanted = set(range(columns[0].shards)[part])
    missing = [sorted(wanted.intersection(ledger.missing(column, rows))) for column in columns]
    needed = sum(
        column.shard_bytes(array, shard)
        for column, shards in zip(columns, missing, strict=True)
        for shard in shards
        for array in column.arrays
        # Of padding, most of which nothing is left.
        if not array.is_compressed or is_of_pixels(array.dtype)
    )
    folder = columns[0].folder
    free = shutil.disk_usage(folder).free if isinstance(folder, Path) else needed
    if needed > free:
        raise CacheWriteError(
            f"the shards that are missing need {decimal(needed)}, and the disk has {decimal(free)} "
            "left",
            where=folder,
            remedy="Make room, or choose another cache.path.",
        )
    return sorted(set().union(*missing))
