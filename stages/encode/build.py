"""Stage one: from a data set to finished columns, making only what is missing.

Any number of processes may build the same cache at once, on one machine or on several that
share its file system: each makes the shards that no other has claimed.
"""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from cache import ledger
from cache.errors import CacheWriteError, RepaCacheError
from cache.layout import Column
from cache.locks import BuildLocks, Holder
from cache.metadata import root_attributes
from cache.verify import Fault
from stages.encode.columns import load_makers
from stages.encode.index import index
from stages.encode.prepare import BuildOptions, known_rows, prepare, tidy, wanted_rows
from stages.encode.settings import EncodeSettings
from stages.encode.shards import ShardEncoder, Work
from stages.encode.sources import SOURCES
from stages.progress import Advance, progress, say
from stages.settings import nearest

# How often a build that has nothing left to claim looks whether the others are done.
POLL_SECONDS = 0.5


class UnknownColumnError(RepaCacheError):
    """The configuration has no column of this name."""


@dataclass(frozen=True)
class BuildSummary:
    """What a cache holds after a build, and what this build did.

    added: rows that are new to the cache; shards_made: by this process; damaged: faults that
    need another configuration to be mended.
    """

    path: Path
    rows: int
    columns: tuple[Column, ...]
    added: int
    shards_made: int
    damaged: tuple[Fault, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows of all columns."""
        return sum(column.row_bytes * column.rows for column in self.columns)


def build(
    settings: EncodeSettings, device: torch.device, options: BuildOptions | None = None
) -> BuildSummary:
    """Encode every image that a column lacks.

    Raises RowsChangedError if images that are cached changed since, StaleCacheError if a column
    was built by another recipe; neither touches the cache.
    """
    options = options or BuildOptions()
    dataset, path, threads = settings.dataset, settings.cache.path, settings.build.threads
    if path.exists():
        root_attributes(path)
    source = SOURCES[dataset.source](dataset.path, dataset.resolution)
    locks = BuildLocks(path)
    with ThreadPoolExecutor(threads) as pool, ExitStack() as stack:
        current = index(source, known_rows(path), pool)
        makers = load_makers(settings, device)
        with locks.preparing(say):
            tidy(path)
            rows = wanted_rows(settings.cache, options, current, locks)
            encoder = ShardEncoder(
                source, rows, dataset.resolution, settings.build.batch_size, pool
            )
            prepared = prepare(settings.cache, options, makers, encoder, threads)
            stack.enter_context(locks.at_work())
        made = _make_missing(list(zip(prepared.columns, makers, strict=True)), encoder, locks)
    return BuildSummary(path, len(rows), prepared.columns, prepared.added, made, prepared.damaged)


def find_columns(settings: EncodeSettings, names: Sequence[str]) -> frozenset[str]:
    """The columns meant by names of encoders, of the VAE, or of columns.

    Raises UnknownColumnError for a name that the configuration does not have.
    """
    columns = [settings.latents.column, *(f"features/{name}" for name in settings.encoders)]
    known = {alias: column for column in columns for alias in (column, Path(column).name)}
    for name in names:
        if name not in known:
            raise UnknownColumnError(f"unknown name {name!r}; {nearest(name, known)}")
    return frozenset(known[name] for name in names)


def _make_missing(work: Work, encoder: ShardEncoder, locks: BuildLocks) -> int:
    """Make the shards that lack, but for those that other processes make; returns how many."""
    missing = [ledger.missing(column, encoder.rows) for column, _ in work]
    _check_space([column for column, _ in work], missing)
    shards = sorted(set().union(*missing))
    made, images = 0, sum(len(work[0][0].shard_rows(shard)) for shard in shards)
    others: set[Holder] = set()
    with progress("build", images, "images") as advance:
        while shards:
            claimed: dict[int, Holder] = {}
            for shard in shards:
                with locks.shard(shard) as holder:
                    if holder is None:
                        made += _make_shard(shard, work, encoder, advance)
                    else:
                        claimed[shard] = holder
            for holder in set(claimed.values()) - others:
                say(f"sharing the work with {holder}")
            others.update(claimed.values())
            if claimed:
                time.sleep(POLL_SECONDS)
            shards = list(claimed)
    return made


def _make_shard(shard: int, work: Work, encoder: ShardEncoder, advance: Advance) -> int:
    """Make a claimed shard of every column that still lacks it; returns of how many."""
    lacking = [(c, maker) for c, maker in work if ledger.is_missing(c, encoder.rows, shard)]
    if lacking:
        encoder.encode(shard, lacking, advance)
    else:
        advance(len(work[0][0].shard_rows(shard)), "")
    return len(lacking)


def _check_space(columns: Sequence[Column], missing: Sequence[Sequence[int]]) -> None:
    """Raise CacheWriteError if the disk cannot hold what is missing."""
    needed = sum(
        column.shard_bytes(array, shard)
        for column, shards in zip(columns, missing, strict=True)
        for shard in shards
        for array in column.arrays
    )
    folder = columns[0].folder
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheWriteError(
            f"{folder}: the shards that are missing need {decimal(needed)}, and the disk has "
            f"{decimal(free)} left. Make room, or choose another cache.path."
        )
