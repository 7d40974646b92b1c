"""Stage one: from a data set to finished columns, making only what is missing.

Any number of processes may build the same cache at once, on one machine or on several that
share its file system: each makes the shards that no other has claimed.
"""

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from cache import ledger
from cache.errors import CacheWriteError, RepaCacheError
from cache.layout import FLIPPED, Column
from cache.locks import BuildLocks
from cache.metadata import root_attributes
from cache.reader import invalid_rows
from cache.rows import RowTable, read_rows
from cache.verify import Fault
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.build_times import record_times
from stages.encode.building.cache_setup import known_rows, lay_out, tidy, wanted_rows
from stages.encode.building.columns import declared_recipes, load_makers
from stages.encode.building.encoding_device import Device
from stages.encode.building.shard_making import Counts, Meter, ShardEncoder, make_all
from stages.encode.images.crop_sources import found, open_crops, open_source
from stages.encode.images.index import index, listed_as
from stages.progress import progress, say
from stages.setting_types import nearest


class UnknownColumnError(RepaCacheError):
    """The configuration has no column of this name."""


@dataclass(frozen=True)
class BuildSummary:
    """What a cache holds after a build, and what this build did.

    added: rows that are new to the cache; missing: shards that are left to be made; counts,
    seconds: of the making of shards; damaged: faults that need another configuration to be
    mended; invalid: reasons by the keys of images that could not be decoded.
    """

    path: Path
    rows: int
    columns: tuple[Column, ...]
    added: int
    missing: int
    counts: Counts
    seconds: float
    damaged: tuple[Fault, ...]
    invalid: Mapping[str, str]


def build(
    settings: EncodeSettings, device: torch.device, options: BuildOptions | None = None
) -> BuildSummary:
    """Encode every image that a column lacks.

    Raises RowsChangedError if images that are cached changed since, StaleCacheError if a column
    was built by another recipe; neither touches the cache.
    """
    options = options or BuildOptions()
    path, threads = settings.cache.path, settings.build.threads
    if path.exists():
        root_attributes(path)
    source, locks = open_source(settings), BuildLocks(path)
    # Before images are read, which may take hours.
    makers = load_makers(settings, device)
    with ThreadPoolExecutor(threads) as pool, ExitStack() as stack:
        known = known_rows(path)
        if source is None:
            current, block = read_rows(path, known), 1
        else:
            say(found(source, settings.dataset))
            skip, block = settings.dataset.on_error == "skip", source.block_rows
            cached = known.rows if known else None
            if cached is not None and source.are_keys_places:
                cached = listed_as(cached, source)
            current = index(source, cached, pool, skip=skip)
            del cached
        with locks.preparing(say):
            tidy(path)
            may_recognise = source is not None and source.are_keys_places
            wanted = wanted_rows(
                settings.cache, options, current, known, locks, block, may_recognise=may_recognise
            )
            rows = wanted.rows
            # They take as much memory again as the rows.
            del current, known
            crops = open_crops(settings, source, rows, pool, device)
            columns, damaged = lay_out(settings.cache, options, makers, wanted, crops, threads)
            stack.enter_context(locks.at_work())
        shards = _missing_shards(columns, rows, options.shards)
        images = sum(len(columns[0].shard_rows(shard)) for shard in shards)
        advance = stack.enter_context(progress("build", images, "images"))
        meter = Meter(advance, options.devices)
        stack.callback(lambda: record_times(columns, meter.counts))
        if options.cluster is None:
            work = list(zip(columns, makers, strict=True))
            make_all(shards, ShardEncoder(work, crops, Device(device), meter, locks).encode)
        elif shards:
            from stages.encode.building.cluster import make_on_cluster  # most builds need no Dask

            # Workers on this machine need the memory of its devices.
            makers.clear()
            torch.cuda.empty_cache()
            make_on_cluster(shards, settings, source, options.cluster, meter, crops.failures)
        seconds = meter.seconds
    missing = [ledger.missing(column, rows) for column in columns]
    invalid = set().union(*map(invalid_rows, columns, missing))
    return BuildSummary(
        path=path,
        rows=len(rows),
        columns=columns,
        added=wanted.added,
        missing=sum(map(len, missing)),
        counts=meter.counts,
        seconds=seconds,
        damaged=tuple(damaged),
        invalid={
            key: crops.failures.get(key, "found by an earlier build")
            for key in map(str, rows.key[sorted(invalid)])
        },
    )


def find_columns(settings: EncodeSettings, names: Sequence[str]) -> frozenset[str]:
    """The columns meant by names of encoders, of the VAE, or of columns.

    An encoder's name also stands for its column of mirrored images. Raises UnknownColumnError
    for a name that the configuration does not have.
    """
    known: dict[str, set[str]] = {}
    for column in declared_recipes(settings):
        plain = column.removesuffix(FLIPPED)
        for alias in (column, plain, Path(plain).name):
            known.setdefault(alias, set()).add(column)
    for name in names:
        if name not in known:
            raise UnknownColumnError(f"unknown name {name!r}; {nearest(name, known)}")
    return frozenset().union(*(known[name] for name in names))


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
    )
    folder = columns[0].folder
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheWriteError(
            f"the shards that are missing need {decimal(needed)}, and the disk has {decimal(free)} "
            "left",
            where=folder,
            remedy="Make room, or choose another cache.path.",
        )
    return sorted(set().union(*missing))
