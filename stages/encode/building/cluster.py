"""Making shards on a Dask cluster: a task per shard, a GPU per worker."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import torch
from dask.distributed import Client, WorkerPlugin, as_completed, get_worker
from distributed.scheduler import KilledWorker

from cache.locking.locks import Holder, ShardLocks
from cache.metadata import read_column, root_attributes
from cache.rows import read_rows
from stages.cluster import ClusterError, NoGpuError, connected, own_gpu, too_many_workers
from stages.encode.build_options import Cluster
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.captions import texts_path
from stages.encode.building.columns import Maker, load_makers
from stages.encode.building.components import open_components
from stages.encode.building.encoding_device import Device
from stages.encode.building.likeness import (
    check_alike,
    named_host,
    other_software,
    software,
)
from stages.encode.building.shard_making import Counts, Meter, ShardEncoder, make_all
from stages.encode.building.text_making import TEXTS
from stages.encode.building.texts import TextReader, load_text_makers
from stages.encode.images.crop_sources import open_crops
from stages.encode.images.sources import Source
from stages.placement import find_device
from stages.processes import own_cores
from stages.progress import say

if TYPE_CHECKING:
    from stages.encode.building.token_batches import Reader

# Per worker: while one is finished on the disk, the next one is computed.
SHARDS_AT_ONCE = 2


@dataclass(frozen=True)
class ShardReport:
    """What a worker did for one shard.

    claimed: the shard and the process that makes it instead, if there is one; failures: reasons
    by the keys of images that could not be decoded; other_software: in what the worker's is not
    the build's, if in anything.
    """

    claimed: dict[int, Holder]
    counts: Counts
    failures: dict[str, str]
    other_software: str | None


def make_on_cluster(
    shards: Sequence[int],
    settings: EncodeSettings,
    source: Source | None,
    locks: ShardLocks,
    cluster: Cluster,
    meter: Meter,
    failures: dict[str, str],
    derived: str | None = None,
) -> None:
    """Have the workers of a cluster, which share the cache's file system, make shards.

    source: the data set, which the workers need not list again; locks: of this build, under which
    they work; meter, failures: told what they did; derived: the column to make, if it is made of
    another one and not of images. Raises ClusterError if there is no cluster, or if its workers
    keep dying, WorkerError if one of them has other weights than this process.
    """
    with connected(cluster, SHARDS_AT_ONCE) as client, _shared(client, source) as build:
        scheduler = str(client.scheduler_info()["id"])
        order = Order(
            build=build,
            settings=settings.model_dump_json(),
            locks=locks,
            workers=cluster.workers,
            cluster=scheduler,
            derived=derived,
            software=tuple(software(settings).items()),
        )
        said: set[str | None] = {None}
        if cluster.dashboard:
            say(f"Dask's dashboard: {client.dashboard_link}")

        def make(shards: Sequence[int]) -> dict[int, Holder]:
            claimed: dict[int, Holder] = {}
            for report in _reports(client, shards, order):
                meter.add(report.counts)
                failures.update(report.failures)
                claimed.update(report.claimed)
                if report.other_software not in said:
                    said.add(report.other_software)
                    say(f"{report.other_software}")
            return claimed

        make_all(shards, make)


class Listing(WorkerPlugin):
    """Brings the data set to every worker, also to one that joins late or is started anew."""

    def __init__(self, source: Source | None) -> None:
        self.source = source


@contextmanager
def _shared(client: Client, source: Source | None) -> Iterator[str]:
    """The name by which workers find the data set while the block lasts."""
    name = uuid4().hex
    client.register_plugin(Listing(source), name=name)
    try:
        yield name
    finally:
        # A cluster that broke down has nothing left to take it from.
        with suppress(OSError):
            client.unregister_worker_plugin(name)


def _reports(client: Client, shards: Sequence[int], order: "Order") -> Iterator[ShardReport]:
    """What the workers did, as they come to an end with each shard."""
    try:
        for future in as_completed(client.map(_make_on_worker, shards, order=order, pure=False)):
            yield future.result()
    except NoGpuError as error:
        raise too_many_workers(
            client,
            error,
            "repa-cache build",
            SHARDS_AT_ONCE,
            "encode on the CPU: --set build.device=cpu",
        ) from error
    except KilledWorker as error:
        raise ClusterError(
            f"Workers died {error.allowed_failures + 1} times over one shard, most likely for want "
            "of memory: reduce build.batch_size, or the number of workers."
        ) from error


@dataclass(frozen=True)
class Order:
    """What a worker needs to know.

    build: a name of its own, because rows and columns may differ from build to build, which is
    also that of its `Listing`; locks: that it works under; workers: on the worker's machine, if
    they were started for this build, else 0; cluster: the scheduler's identity; derived: the
    column to make, if it is made of another one; software: the versions that the build has.
    """

    build: str
    settings: str
    locks: ShardLocks
    workers: int
    cluster: str
    derived: str | None
    software: tuple[tuple[str, str], ...]


_opening = threading.Lock()


def _make_on_worker(shard: int, order: Order) -> ShardReport:
    with _opening, named_host():
        shared, unlike = _open(order)
    # Readers of all kinds are dataclasses.
    reader: Reader = replace(shared.reader, failures={})  # type: ignore[type-var]
    own = replace(shared, reader=reader, meter=Meter())
    claimed = own.encode([shard])
    return ShardReport(claimed, own.meter.counts, own.reader.failures, unlike)


@lru_cache(maxsize=1)
def _open(order: Order) -> tuple[ShardEncoder, str | None]:
    """What the shards that a worker makes have in common: networks, rows and columns.

    And in what its software is not the build's, if in anything.
    """
    settings = EncodeSettings.model_validate_json(order.settings)
    path, threads = settings.cache.path, settings.reading_threads(order.workers or 1)
    if order.workers:
        torch.set_num_threads(own_cores(order.workers))
    device = find_device(own_gpu(settings.build.device, order.cluster))
    # It says plainly that this host does not see the cache.
    root_attributes(path)
    rows, pool = read_rows(path), ThreadPoolExecutor(threads)
    makers: Sequence[Maker]
    reader: Reader
    source = cast("Listing", get_worker().plugins[order.build]).source
    if order.derived == TEXTS:
        path = texts_path(path)
        rows = read_rows(path)
        makers = load_text_makers(settings, device, source)
        reader = TextReader(rows, settings.build.images_at_once(device))
    elif order.derived is not None:
        derived, reader = open_components(settings, order.derived, rows, pool, device)
        makers = [derived]
    else:
        makers = load_makers(settings, device)
        reader = open_crops(settings, source, rows, pool, device)
    unlike = other_software(software(settings), dict(order.software))
    work = [(read_column(path, maker.column, len(rows)), maker) for maker in makers]
    check_alike(work)
    return ShardEncoder(work, reader, Device(device), Meter(), order.locks), unlike
