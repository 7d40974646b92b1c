"""Which GPU each Dask worker takes: real workers, which tests/tools/gpus.py shows its GPUs."""

import os
import signal
from collections.abc import Callable, Iterator

import dask
import pytest
import torch
from dask.distributed import Client
from dask_workers import WAIT_SECONDS, WORKSPACE, dask_workers, scheduler
from places import TOOLS

from pipeline.config import Config
from stages.cluster import ClusterError, NoGpuError, own_gpu
from stages.encode.build import build
from stages.encode.build_options import BuildOptions, Cluster

CPU = torch.device("cpu")
GPUS = TOOLS / "gpus.py"
SEEING = ("--preload", str(GPUS))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with scheduler() as client:
        yield client


def claimed(client: Client, name: str, cluster: str = "one") -> dict[str, str]:
    """What each worker is given, by its address: a device, or none of so many GPUs."""
    workers = list(client.nthreads())
    claims = {
        worker: client.submit(own_gpu, name, cluster, workers=[worker], pure=False)
        for worker in workers
    }
    found = {}
    for worker, claim in claims.items():
        try:
            found[worker] = claim.result()
        except NoGpuError as error:
            found[worker] = f"none of {error.gpus}"
    return found


@pytest.mark.slow
def test_each_of_the_workers_of_a_host_has_a_gpu_and_one_that_is_too_many_is_refused(
    client: Client,
) -> None:
    with dask_workers(client, *SEEING, "--name", "mine", "--nworkers", "3"):
        found = claimed(client, "cuda")
        assert sorted(found.values()) == ["cuda:0", "cuda:1", "none of 2"]
        # They keep what they have.
        assert claimed(client, "cuda") == found
        # The workers of another cluster may have the same GPUs.
        assert sorted(claimed(client, "cuda", "other").values()) == sorted(found.values())
        # A GPU that is named is for one worker.
        named = claimed(client, "cuda:1", "third")
        assert sorted(named.values()) == ["cuda:1", "none of 1", "none of 1"]
        assert set(claimed(client, "cpu").values()) == {"cpu"}
        assert set(client.run(os.environ.get, WORKSPACE).values()) == {":4096:8"}


@pytest.mark.slow
def test_a_worker_that_is_started_again_takes_the_gpu_of_the_one_that_died(client: Client) -> None:
    with dask_workers(client, *SEEING, "--nworkers", "2"):
        before = claimed(client, "cuda")
        lost, kept = sorted(before, key=before.__getitem__)
        os.kill(client.run(os.getpid, workers=[lost])[lost], signal.SIGKILL)
        while lost in client.nthreads() or len(client.nthreads()) < 2:
            client.wait_for_workers(2, WAIT_SECONDS)
        after = claimed(client, "cuda")
        assert after.pop(kept) == before[kept]
        assert list(after.values()) == [before[lost]]


@pytest.mark.slow
def test_workers_that_see_their_own_gpu_first_take_it(client: Client) -> None:
    # As dask-cuda and batch queues start them.
    with (
        dask_workers(client, *SEEING, CUDA_VISIBLE_DEVICES="1,2,0"),
        dask_workers(client, *SEEING, CUDA_VISIBLE_DEVICES="2,0,1"),
        dask_workers(client, *SEEING, CUDA_VISIBLE_DEVICES="7"),
    ):
        assert set(claimed(client, "cuda").values()) == {"cuda:0"}


@pytest.mark.slow
def test_a_build_says_on_which_host_there_are_more_workers_than_gpus(
    tiny: Callable[..., Config],
) -> None:
    config = tiny("cache.rows_per_shard=2", "build.device=cuda")
    with dask.config.set({"distributed.worker.preload": [str(GPUS)]}):
        with pytest.raises(ClusterError) as error:
            build(config.encode, CPU, BuildOptions(cluster=Cluster(workers=3)))
        said = f"{os.uname().nodename} has 3 Dask workers, but only 2 GPUs for them (the device"
        assert str(error.value).startswith(said)
        assert "Start one worker per GPU (`repa-cache build --workers 2`;" in str(error.value)
        made = build(config.encode, CPU, BuildOptions(cluster=Cluster(workers=2)))
    assert made.missing == 0
