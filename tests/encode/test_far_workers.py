"""A build by workers that have nothing in common with it but packages and an object store."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import torch
from dask.distributed import Client
from tiny_cache import content

from cache.stores.places import StorePath
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.build_options import BuildOptions, Cluster
from stages.encode.network_settings import DEMO_AUTOENCODER

CPU = torch.device("cpu")
SETTINGS = (
    *(f"latents.vae={DEMO_AUTOENCODER}", "encoders.efficientnet-lite0.input_size=128"),
    *("cache.rows_per_shard=2", "dataset.resolution=64"),
)
# A machine of its own: of the folder there is an empty one in its place.
ELSEWHERE = """
mount -t tmpfs none "$0" && mkdir "$0/home" && cd "$0/home" && export HOME="$PWD" TMPDIR="$PWD"
exec "$@"
"""


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """The address of a scheduler of two workers, each on a machine of its own, and these."""
    dask = (sys.executable, "-m", "dask")
    told = tmp_path / "scheduler.json"
    with ExitStack() as stack:
        stack.enter_context(
            running(*dask, "scheduler", "--port=0", f"--scheduler-file={told}", "--no-dashboard")
        )
        while not told.is_file():
            time.sleep(0.1)
        with closing(Client(scheduler_file=str(told))) as client:
            address = str(client.scheduler.address)
            unshare = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ELSEWHERE)
            worker = (*dask, "worker", address, "--nthreads=1", "--no-dashboard")
            command = (*unshare, str(tmp_path), *worker)
            made = [stack.enter_context(running(*command)) for _ in range(2)]
            client.wait_for_workers(2, timeout=60)
        yield address, [process.pid for process in made]


def kill_at_work(place: StorePath, machine: int) -> None:
    """Kill all processes of a machine once the first shards are there."""
    while sum("ledger/c." in one.key for one in place.tree()) < 2:
        time.sleep(0.05)
    os.killpg(machine, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_that_share_a_store_alone_make_the_cache_of_one_process(
    tiny: Callable[..., Config],
    bucket: StorePath,
    images: Path,
    machines: tuple[str, list[int]],
) -> None:
    scheduler, (victim, _) = machines
    place = bucket / "far-workers"
    for file in images.rglob("*.jpg"):
        (place / "images" / file.relative_to(images).as_posix()).put(file)
    source = f"dataset.path={place}/images"
    alone = tiny(*SETTINGS, source, "cache.path=alone.zarr")
    shared = tiny(*SETTINGS, source, f"cache.path={place}/shared.zarr")
    build(alone.encode, CPU)
    killer = threading.Thread(target=kill_at_work, args=(shared.cache.path, victim), daemon=True)
    killer.start()
    made = build(shared.encode, CPU, BuildOptions(cluster=Cluster(scheduler=scheduler)))
    killer.join()
    with closing(Client(scheduler)) as client:
        assert len(client.scheduler_info()["workers"]) == 1
    assert made.missing == 0
    assert content(shared.cache.path) == content(alone.cache.path)
    place.remove_tree()
