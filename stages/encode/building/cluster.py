"""Making shards on a Dask cluster: a task per shard, a GPU per worker.

Workers are started in many ways: here, by `dask worker`, by dask-cuda (each sees its own GPU
first), by batch queues (each sees its own GPU alone), and again when they died. Neither their
names nor their numbers tell which GPU is free, so that each claims one by the GPU's own identity.
"""

import errno
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import torch
from dask.distributed import Client, LocalCluster, WorkerPlugin, as_completed, get_worker
from distributed.scheduler import KilledWorker

from cache.errors import RepaCacheError
from cache.locks import BuildLocks, Holder
from cache.metadata import check_recipe, read_column
from cache.rows import read_rows
from stages.encode.build_options import Cluster
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import Maker, load_makers
from stages.encode.building.components import open_components
from stages.encode.building.encoding_device import Device
from stages.encode.building.shard_making import Counts, Meter, ShardEncoder, make_all
from stages.encode.images.crop_sources import open_crops
from stages.encode.images.sources import Source
from stages.placement import find_device, named_device
from stages.progress import say

if TYPE_CHECKING:
    from stages.encode.building.token_batches import Reader

VISIBLE = "CUDA_VISIBLE_DEVICES"

# By cluster and GPU. The system frees them when the process ends, however it does.
_claims: dict[tuple[str, str], socket.socket] = {}
CONNECT_SECONDS = 10
# Per worker: while one is finished on the disk, the next one is computed.
SHARDS_AT_ONCE = 2


class NoGpuError(RepaCacheError):
    """All GPUs that a worker may use are claimed.

    host: the worker's; gpus: their number; because: the settings that name them.
    """

    def __init__(self, host: str, gpus: int, because: str) -> None:
        super().__init__(f"{gpus} GPUs, and all are claimed", where=host)
        self.host, self.gpus, self.because = host, gpus, because

    def __reduce__(self) -> tuple[type["NoGpuError"], tuple[str, int, str]]:
        return NoGpuError, (self.host, self.gpus, self.because)


def own_gpu(name: str, cluster: str) -> str:
    """The name of the device for this process, among all workers of a cluster.

    name: as configured; what is no GPU stays as it is. Raises NoGpuError if none is left.
    """
    wanted = named_device(name)
    gpus = {
        str(torch.cuda.get_device_properties(number).uuid): number
        for number in range(torch.cuda.device_count() if wanted.type == "cuda" else 0)
        if wanted.index in (None, number)
    }
    if not gpus:
        return name
    for gpu in sorted(gpus, key=lambda gpu: (cluster, gpu) not in _claims):
        if _is_claimed(cluster, gpu):
            return f"cuda:{gpus[gpu]}"
    visible = os.environ.get(VISIBLE)
    because = f"build.device is {name!r}" + (f", {VISIBLE} {visible}" if visible else "")
    raise NoGpuError(socket.gethostname(), len(gpus), because)


def _is_claimed(cluster: str, gpu: str) -> bool:
    """Whether this process has a GPU for itself from here on."""
    if (cluster, gpu) not in _claims:
        claim = socket.socket(socket.AF_UNIX)
        try:
            # A name beside the file system, of which there can be one on a machine.
            claim.bind(f"\0repa-cache {sha256(f'{cluster} {gpu}'.encode()).hexdigest()}")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        _claims[cluster, gpu] = claim
    return True


class ClusterError(RepaCacheError):
    """The cluster cannot be reached, or its workers keep dying."""


@dataclass(frozen=True)
class ShardReport:
    """What a worker did for one shard.

    claimed: the shard and the process that makes it instead, if there is one; failures: reasons
    by the keys of images that could not be decoded.
    """

    claimed: dict[int, Holder]
    counts: Counts
    failures: dict[str, str]


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Client]:
    """A client of the cluster, which is started if need be, and ends with the block."""
    if cluster.scheduler is not None:
        try:
            client = Client(cluster.scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at {cluster.scheduler}: {error}"
            ) from error
        with client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=cluster.workers,
            threads_per_worker=SHARDS_AT_ONCE,
            # Any port: there may be other clusters on this machine.
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": cluster.dashboard},
            memory_limit=None,
            silence_logs="CRITICAL",
        ) as local,
        Client(local) as client,
    ):
        yield client


def make_on_cluster(
    shards: Sequence[int],
    settings: EncodeSettings,
    source: Source | None,
    cluster: Cluster,
    meter: Meter,
    failures: dict[str, str],
    derived: str | None = None,
) -> None:
    """Have the workers of a cluster, which share the cache's file system, make shards.

    source: the data set, which the workers need not list again; meter, failures: told what they
    did; derived: the column to make, if it is made of another one and not of images. Raises
    ClusterError if there is no cluster, or if its workers keep dying.
    """
    with _connected(cluster) as client, _shared(client, source) as build:
        scheduler = str(client.scheduler_info()["id"])
        order = Order(build, settings.model_dump_json(), cluster.workers, scheduler, derived)
        if cluster.dashboard:
            say(f"Dask's dashboard: {client.dashboard_link}")

        def make(shards: Sequence[int]) -> dict[int, Holder]:
            claimed: dict[int, Holder] = {}
            for report in _reports(client, shards, order):
                meter.add(report.counts)
                failures.update(report.failures)
                claimed.update(report.claimed)
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
        raise _too_many_workers(client, error) from error
    except KilledWorker as error:
        raise ClusterError(
            f"Workers died {error.allowed_failures + 1} times over one shard, most likely for want "
            "of memory: reduce build.batch_size, or the number of workers."
        ) from error


def _too_many_workers(client: Client, refused: NoGpuError) -> ClusterError:
    hosts = client.run(socket.gethostname, on_error="ignore")
    workers, gpus = list(hosts.values()).count(refused.host), refused.gpus
    return ClusterError(
        f"{refused.host} has {workers} Dask workers, but only {gpus} "
        f"{'GPU' if gpus == 1 else 'GPUs'} for them ({refused.because}), and each worker needs "
        f"one for itself. Start one worker per GPU (`repa-cache build --workers {gpus}`; `dask "
        f"worker SCHEDULER --nworkers {gpus} --nthreads {SHARDS_AT_ONCE}`; `dask cuda worker "
        "SCHEDULER`), or encode on the CPU: --set build.device=cpu."
    )


@dataclass(frozen=True)
class Order:
    """What a worker needs to know.

    build: a name of its own, because rows and columns may differ from build to build, which is
    also that of its `Listing`; workers: on the worker's machine, if they were started for this
    build, else 0; cluster: the scheduler's identity; derived: the column to make, if it is made of
    another one.
    """

    build: str
    settings: str
    workers: int
    cluster: str
    derived: str | None


_opening = threading.Lock()


def _make_on_worker(shard: int, order: Order) -> ShardReport:
    with _opening:
        shared = _open(order)
    # Readers of all kinds are dataclasses.
    reader: Reader = replace(shared.reader, failures={})  # type: ignore[type-var]
    own = replace(shared, reader=reader, meter=Meter())
    claimed = own.encode([shard])
    return ShardReport(claimed, own.meter.counts, own.reader.failures)


@lru_cache(maxsize=1)
def _open(order: Order) -> ShardEncoder:
    """What the shards that a worker makes have in common: networks, rows and columns."""
    settings = EncodeSettings.model_validate_json(order.settings)
    path, threads = settings.cache.path, settings.build.threads
    if order.workers:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // order.workers))
        threads = max(1, threads // order.workers)
    device = find_device(own_gpu(settings.build.device, order.cluster))
    rows, pool = read_rows(path), ThreadPoolExecutor(threads)
    makers: Sequence[Maker]
    reader: Reader
    if order.derived is not None:
        derived, reader = open_components(settings, order.derived, rows, pool, device)
        makers = [derived]
    else:
        source = cast("Listing", get_worker().plugins[order.build]).source
        makers = load_makers(settings, device)
        reader = open_crops(settings, source, rows, pool, device)
    columns = [read_column(path, maker.column, len(rows)) for maker in makers]
    for column, maker in zip(columns, makers, strict=True):
        check_recipe(column, maker.recipe)
    return ShardEncoder(
        list(zip(columns, makers, strict=True)),
        reader,
        Device(device),
        Meter(),
        BuildLocks(path),
    )
