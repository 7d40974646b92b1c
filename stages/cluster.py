"""Dask clusters: started here or found running, with a GPU for each of their workers.

Workers are started in many ways: here, by `dask worker`, by dask-cuda (each sees its own GPU
first), by batch queues (each sees its own GPU alone), and again when they died. Neither their
names nor their numbers tell which GPU is free, so that each claims one by the GPU's own identity.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import dask
import torch
from dask.distributed import Client, LocalCluster

from cache.errors import RepaCacheError
from stages.encode.build_options import Cluster
from stages.placement import named_device

VISIBLE = "CUDA_VISIBLE_DEVICES"

# By cluster and GPU. The system frees them when the process ends, however it does.
_claims: dict[tuple[str, str], socket.socket] = {}
CONNECT_SECONDS = 10
# Of clusters that are started here, whose workers have few tasks, and long ones: no profiler and
# hardly any looking about, which would take a tenth of a core.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


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
    because = f"the device is {name!r}" + (f", {VISIBLE} {visible}" if visible else "")
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


@contextmanager
def connected(cluster: Cluster, threads: int) -> Iterator[Client]:
    """A client of the cluster, which is started if need be, and ends with the block.

    threads: of each worker that is started. Raises ClusterError if no scheduler answers, or if a
    worker does not start.
    """
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
    with dask.config.set(QUIET), _started(cluster, threads) as local, Client(local) as client:
        yield client


def _started(cluster: Cluster, threads: int) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=cluster.workers,
            threads_per_worker=threads,
            # Any port: there may be other clusters on this machine.
            dashboard_address=":0",
            scheduler_kwargs={"dashboard": cluster.dashboard},
            memory_limit=None,
            silence_logs="CRITICAL",
        )
    except RuntimeError as error:
        raise ClusterError(
            f"The workers do not start: {error} What a script does has to stand below `if __name__ "
            '== "__main__":`, since every worker imports the script.'
        ) from error


def too_many_workers(
    client: Client, refused: NoGpuError, command: str, threads: int, otherwise: str
) -> ClusterError:
    """The error of a host with more workers than GPUs.

    command, threads: that start workers of its own, and a worker's threads; otherwise: what else
    there is to do.
    """
    hosts = client.run(socket.gethostname, on_error="ignore")
    workers, gpus = list(hosts.values()).count(refused.host), refused.gpus
    return ClusterError(
        f"{refused.host} has {workers} Dask workers, but only {gpus} "
        f"{'GPU' if gpus == 1 else 'GPUs'} for them ({refused.because}), and each worker needs "
        f"one for itself. Start one worker per GPU (`{command} --workers {gpus}`; `dask "
        f"worker SCHEDULER --nworkers {gpus} --nthreads {threads}`; `dask cuda worker "
        f"SCHEDULER`), or {otherwise}."
    )
