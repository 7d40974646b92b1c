"""Dask workers in processes of their own, as other machines have them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dask.distributed import Client, LocalCluster
from places import ROOT, TOOLS

WAIT_SECONDS = 60
# Set by this process for itself.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def scheduler() -> Iterator[Client]:
    """A client of a scheduler without workers of its own."""
    with (
        LocalCluster(n_workers=0, dashboard_address=":0", silence_logs="CRITICAL") as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def dask_workers(
    client: Client, *options: str, folder: Path | None = None, **environment: str
) -> Iterator[None]:
    """A process as `dask worker`, in a folder, which ends with the block."""
    there = len(client.nthreads())
    command = [sys.executable, "-m", "dask", "worker", client.scheduler.address, "--nthreads", "1"]
    inherited = {name: value for name, value in os.environ.items() if name != WORKSPACE}
    process = subprocess.Popen(
        [*command, "--no-dashboard", *options],
        cwd=folder,
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, TOOLS])), **environment},
        stderr=subprocess.DEVNULL,
    )
    try:
        number = int(options[-1]) if "--nworkers" in options else 1
        client.wait_for_workers(there + number, WAIT_SECONDS)
        yield
    finally:
        process.terminate()
        process.wait(WAIT_SECONDS)
