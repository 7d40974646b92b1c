"""The examples for clusters: run as they are, with stand-ins for the schedulers alone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dask.distributed import LocalCluster
from launching import assert_close_runs
from places import ROOT
from runs import assert_equal_runs, log_values, newest, trained
from tiny_cache import content

from pipeline.config import Config, load_config
from stages.encode.build import build

CLUSTERS = ROOT / "pipeline" / "clusters"
# What stands in for programs that are not here, by name: scripts of a shell.
PROGRAMS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.log; fi',
    # A machine of its own.
    "ssh": 'shift; exec bash -c "$*"',
    "repa-cache": f'exec "{sys.executable}" -m pipeline "$@"',
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    "dask": f'exec "{sys.executable}" -m dask "$@"',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which these programs are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PORT": str(free_port())}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture
def unbuilt(tiny: Callable[..., Config]) -> Iterator[Path]:
    """A folder with a configuration and images; a cache that is built there has to be right."""
    folder, alone = Path.cwd(), tiny("cache.rows_per_shard=2", "cache.path=alone.zarr")
    path = folder / "pipeline.toml"
    path.write_text(path.read_text().replace("rows_per_shard = 8", "rows_per_shard = 2"))
    yield folder
    build(alone.encode, torch.device("cpu"))
    assert content(folder / "tiny.zarr") == content(folder / "alone.zarr")


@pytest.fixture
def cached(built: Path, tmp_path: Path) -> Path:
    """A folder with a configuration and a finished cache."""
    folder = tmp_path / "cached"
    folder.mkdir()
    (folder / "images").symlink_to(built / "images")
    shutil.copytree(built / "tiny.zarr", folder / "tiny.zarr")
    shutil.copy(built / "pipeline.toml", folder)
    return folder


def started(command: list[Any], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTERS / name).read_text()))


def in_pod(job: dict[str, Any], index: int, **own: str) -> tuple[list[str], dict[str, str]]:
    """The command and the variables of a pod of an indexed Job; own: instead of the manifest's."""
    assert job["spec"]["completionMode"] == "Indexed"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    variables |= {**own, "JOB_COMPLETION_INDEX": str(index)}
    command = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], w) for w in container["command"]]
    return command, variables


def check_mounts(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_example_is_told_of_and_is_sound() -> None:
    told = (CLUSTERS / "README.md").read_text()
    for path in CLUSTERS.iterdir():
        assert path.name == "README.md" or f"]({path.name})" in told
        if path.suffix in {".sh", ".sbatch"}:
            subprocess.run(["bash", "-n", path], check=True)
        if path.suffix == ".yaml":
            check_mounts(documents(path.name)[-1])
    service, job = documents("train-job.yaml")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    pod, name = job["spec"]["template"]["spec"], service["metadata"]["name"]
    assert pod["subdomain"] == name
    assert pod["containers"][0]["env"][1]["value"].startswith(f"{job['metadata']['name']}-0.{name}")


@pytest.mark.slow
def test_an_array_of_jobs_builds_a_cache(unbuilt: Path, environment: dict[str, str]) -> None:
    # Eleven shards.
    for number in range(2):
        own = {**environment, "SLURM_ARRAY_TASK_ID": str(number), "EACH": "6"}
        ended(started(["bash", CLUSTERS / "build-array.sbatch"], unbuilt, own))


@pytest.mark.slow
def test_pods_build_a_cache(unbuilt: Path, environment: dict[str, str]) -> None:
    (job,) = documents("build-job.yaml")
    for number in range(2):
        command, variables = in_pod(job, number, EACH="6")
        ended(started(command, unbuilt, environment | variables))


@pytest.mark.slow
def test_machines_that_ssh_reaches_build_a_cache(
    unbuilt: Path, environment: dict[str, str]
) -> None:
    own = {**environment, "WORKERS": "1", "ADDRESS": "127.0.0.1"}
    ended(started(["bash", CLUSTERS / "build-ssh.sh", "one", "other"], unbuilt, own))


@pytest.mark.slow
def test_jobs_of_dask_build_a_cache(
    unbuilt: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (CLUSTERS / "README.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    given: dict[str, Any] = {}
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as local:

        def cluster(**options: Any) -> LocalCluster:
            given.update(options)
            return local

        local.adapt = lambda **jobs: given.update(jobs)  # type: ignore[method-assign]
        module = types.SimpleNamespace(SLURMCluster=cluster)
        monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
        for name in ("PATH", "PYTHONPATH"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.chdir(unbuilt)
        exec(program, {"__name__": "__main__"})
    assert given["job_extra_directives"] == ["--gpus=1"]


def train_alone(folder: Path) -> Config:
    config = load_config(folder / "pipeline.toml", [f"train.run={folder / 'alone'}"])
    trained(config)
    return config


@pytest.mark.slow
def test_two_machines_train_like_one(cached: Path, environment: dict[str, str]) -> None:
    _, job = documents("train-job.yaml")
    meeting = f"127.0.0.1:{environment['PORT']}"
    pods = [in_pod(job, number, GPUS="1", MEETING=meeting) for number in range(2)]
    processes = [started(command, cached, environment | more) for command, more in pods]
    for process in processes:
        ended(process)
    config = load_config(cached / "pipeline.toml")
    assert newest(config).step == config.train.steps
    assert_close_runs(config, train_alone(cached), 1e-4)


@pytest.mark.slow
def test_the_command_of_the_document_for_two_machines_trains_like_one(
    cached: Path, environment: dict[str, str]
) -> None:
    text = (CLUSTERS / "README.md").read_text()
    (command,) = re.findall(r"^(torchrun .*)$", text, re.MULTILINE)
    here = f"127.0.0.1:{environment['PORT']}"
    words = command.replace("node1:29500", here).replace("per-node 8", "per-node 1").split()
    for process in [started(words, cached, environment) for _ in range(2)]:
        ended(process)
    assert_close_runs(load_config(cached / "pipeline.toml"), train_alone(cached), 1e-4)


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_requeued_and_goes_on(
    cached: Path, environment: dict[str, str]
) -> None:
    path = cached / "pipeline.toml"
    path.write_text(path.read_text().replace("\nsteps = 4\n", "\nsteps = 400\n", 1))
    job = {
        **environment,
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    config, command = load_config(path), ["bash", CLUSTERS / "train.sbatch"]
    process = started(command, cached, job)
    while len(log_values(config)) < 3:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert "with a checkpoint in" in errors
    assert (cached / "scontrol.log").read_text() == "requeue 42\n"
    stopped = newest(config).step
    assert 3 <= stopped < 400
    path.write_text(path.read_text().replace("steps = 400", f"steps = {stopped + 3}"))
    ended(started(command, cached, job))
    assert (cached / "scontrol.log").read_text() == "requeue 42\n"
    whole = path.read_text().replace('run = "run"', 'run = "whole"')
    path.write_text(whole)
    ended(started(command, cached, job))
    assert_equal_runs(config, load_config(path))
