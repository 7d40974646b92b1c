"""Builds on a Dask cluster: real workers, one of which is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from dask.distributed import LocalCluster
from tiny_cache import content
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.config import Config
from stages.cluster import ClusterError
from stages.encode.build import build
from stages.encode.build_options import BuildOptions, Cluster
from stages.encode.images.sources import SOURCES, Source
from stages.encode.images.sources.folders import image_folder
from stages.encode.images.sources.source import FileSettings, SourceKind
from stages.processes import own_cores

CPU = torch.device("cpu")
SHARDS = "cache.rows_per_shard=2"


def kill_a_worker(locks: Path, killed: list[int]) -> None:
    """Kill the first process that is seen to make a shard."""
    while not killed:
        for claim in locks.glob("shard-*"):
            try:
                pid = json.loads(claim.read_text())["pid"]
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):
                continue
            killed.append(pid)
            return
        time.sleep(0.001)


@pytest.fixture
def half_the_cores() -> Iterator[None]:
    """Last bits depend on the number of threads: two workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(own_cores(2))
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("half_the_cores")
def test_a_worker_that_is_killed_changes_no_byte(tiny: Callable[..., Config]) -> None:
    alone, shared = tiny(SHARDS, "cache.path=alone.zarr"), tiny(SHARDS)
    build(alone.encode, CPU)
    killed: list[int] = []
    locks = shared.cache.path.with_name(f".{shared.cache.path.name}.locks")
    killer = threading.Thread(target=kill_a_worker, args=(locks, killed), daemon=True)
    killer.start()
    made = build(shared.encode, CPU, BuildOptions(cluster=Cluster(workers=2)))
    killer.join()
    assert killed != [os.getpid()]
    assert made.missing == 0
    assert content(shared.cache.path) == content(alone.cache.path)
    assert not locks.exists()


@pytest.mark.slow
def test_a_running_scheduler_is_used_and_left_running(tiny: Callable[..., Config]) -> None:
    config = tiny()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as local:
        options = BuildOptions(cluster=Cluster(scheduler=local.scheduler_address))
        assert build(config.encode, CPU, options).counts.shards == 6
        # Rows are not what this worker remembers of the build before.
        (config.dataset.path / "class1/9.jpg").write_bytes(
            (config.dataset.path / "class1/1.jpg").read_bytes()
        )
        assert build(config.encode, CPU, options).counts.shards == 2
        assert len(local.workers) == 1


def test_the_data_set_is_listed_once_for_all_workers(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, listed = tiny(), []

    def images(dataset: FileSettings) -> Source:
        listed.append(dataset)
        return image_folder(dataset)

    monkeypatch.setitem(SOURCES, "imagefolder", SourceKind(images))
    with LocalCluster(n_workers=2, processes=False, dashboard_address=None) as local:
        options = BuildOptions(cluster=Cluster(scheduler=local.scheduler_address))
        assert build(config.encode, CPU, options).counts.shards == 6
        plugins = [name for worker in local.workers.values() for name in worker.plugins]
    assert len(listed) == 1
    assert not any(len(name) == 32 for name in plugins), "left behind"


@pytest.mark.slow
def test_errors_of_workers_reach_the_user(tiny: Callable[..., Config]) -> None:
    config = tiny()
    (config.dataset.path / "class1/3.jpg").write_text("no image")
    path = str(config.dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["build", "--config", path, "--workers", "1"])
    assert shown.exit_code == 1
    assert "class1/3.jpg cannot be decoded" in shown.output
    assert "Traceback" not in shown.output


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named(tiny: Callable[..., Config]) -> None:
    options = BuildOptions(cluster=Cluster(scheduler="tcp://127.0.0.1:1"))
    with pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        build(tiny().encode, CPU, options)


@pytest.mark.slow
def test_a_script_that_every_worker_would_run_again_is_told_how_to_be_written(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from stages.cluster import Cluster, connected\n"
        "with connected(Cluster(workers=1), 1):\n"
        "    pass\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "stages.cluster.ClusterError: The workers do not"
    )
    assert 'below `if __name__ == "__main__":`' in done.stderr
