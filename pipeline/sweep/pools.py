"""Where processes of runs are at work: here, one after another, or by the workers of a cluster."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from uuid import uuid4

from pipeline.sweep.processes import Ended, Order, Outcome, follow
from stages.encode.build_options import Cluster

# A worker has one run at a time; more threads answer the scheduler no faster.
THREADS = 1
LOST = Ended(Outcome.FAILED, "its worker is gone; if nobody ended it, look for want of memory")


class Pool(Protocol):
    """Places for one process each."""

    def free(self) -> list[str]:
        """The places that have nothing to do."""

    def start(self, place: str, order: Order) -> None:
        """Start a process there."""

    def ended(self) -> list[tuple[str, Ended]]:
        """The processes that ended since it was last asked, by the names of their orders."""

    def stop(self) -> None:
        """Ask all processes to stop; they end when they can."""


class Here:
    """One process after another on this machine."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._at_work: dict[str, Future[Ended]] = {}
        self._asked = threading.Event()

    def free(self) -> list[str]:
        return [] if self._at_work else ["here"]

    def start(self, place: str, order: Order) -> None:  # noqa: ARG002 - there is one
        self._at_work[order.name] = self._threads.submit(follow, order, self._asked.is_set)

    def ended(self) -> list[tuple[str, Ended]]:
        done = [name for name, future in self._at_work.items() if future.done()]
        return [(name, self._at_work.pop(name).result()) for name in done]

    def stop(self) -> None:
        self._asked.set()


class Workers:
    """A process for each worker of a Dask cluster.

    client: of the cluster; device: as configured; own: how many of the workers were started for
    this sweep, on this machine.
    """

    def __init__(self, client: Any, device: str, own: int) -> None:
        self._client, self._device, self._own = client, device, own
        self._sweep, self._cluster = uuid4().hex, str(client.scheduler_info()["id"])
        self._at_work: dict[str, tuple[str, Any]] = {}

    def free(self) -> list[str]:
        busy = {place for place, _ in self._at_work.values()}
        return [place for place in self._places() if place not in busy]

    def _places(self) -> list[str]:
        from stages.cluster import ClusterError

        try:
            return list(self._client.nthreads())
        except OSError as error:
            raise ClusterError(
                f"The Dask scheduler is gone ({error})",
                remedy="Runs stop with checkpoints. Run the same command to go on.",
            ) from error

    def start(self, place: str, order: Order) -> None:
        arguments = (order, self._sweep, self._cluster, self._device, self._own)
        future = self._client.submit(
            follow_on_worker, *arguments, workers=[place], pure=False, retries=0
        )
        self._at_work[order.name] = place, future

    def ended(self) -> list[tuple[str, Ended]]:
        there, found = set(self._places()), []
        for name, (place, future) in list(self._at_work.items()):
            if future.done() and future.status == "finished":
                found.append((name, future.result()))
            elif future.done():
                found.append((name, self._failed(future)))
            elif place not in there:
                future.cancel()
                found.append((name, LOST))
            else:
                continue
            del self._at_work[name]
        return found

    def _failed(self, future: Any) -> Ended:
        """What a worker met with. Raises ClusterError if it has no GPU."""
        from stages.cluster import NoGpuError, too_many_workers

        error = future.exception() if future.status == "error" else None
        if isinstance(error, NoGpuError):
            otherwise = "train on the CPU: set.train.device in the file of the sweep"
            raise too_many_workers(self._client, error, "repa-cache sweep", THREADS, otherwise)
        return LOST if error is None else Ended(Outcome.FAILED, str(error))

    def stop(self) -> None:
        with suppress(OSError):
            self._client.run(ask_to_stop, self._sweep, on_error="ignore")


# Sweeps whose processes a worker was asked to stop.
_asked: set[str] = set()


def ask_to_stop(sweep: str) -> None:
    """Have the process that this worker follows for a sweep stop."""
    _asked.add(sweep)


def follow_on_worker(order: Order, sweep: str, cluster: str, device: str, own: int) -> Ended:
    """Start the process of a run on this worker's GPU, and wait for its end.

    sweep: by which it is asked to stop; cluster: the scheduler's identity; device, own: as of
    `Workers`. Raises NoGpuError.
    """
    return follow(order, lambda: sweep in _asked, _environment(cluster, device, own))


def _environment(cluster: str, device: str, own: int) -> dict[str, str]:
    """What shows a process the GPU of its worker alone, or gives it its part of the cores."""
    import torch

    from stages.cluster import VISIBLE, own_gpu
    from stages.processes import own_cores

    name = own_gpu(device, cluster)
    if name.startswith("cuda:") and torch.cuda.is_available():
        return {VISIBLE: f"GPU-{torch.cuda.get_device_properties(name).uuid}"}
    if not own or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(own_cores(own))}


@contextmanager
def opened(cluster: Cluster | None, device: str) -> Iterator[Pool]:
    """Places for runs; a cluster is started if need be, and ends with the block."""
    if cluster is None:
        with ThreadPoolExecutor(1) as threads:
            yield Here(threads)
        return
    from stages.cluster import connected

    with connected(cluster, THREADS) as client:
        yield Workers(client, device, cluster.workers)
