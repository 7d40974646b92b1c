"""Processes that srun and others start, told apart by the variables that these set."""

from collections.abc import Callable

import pytest
import torch
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.config import Config
from stages.placement import DeviceError, find_device

STEP = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NNODES": "2"}
# What torchrun tells each of its processes, beside its number on its machine.
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}

Set = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets variables of a launcher."""

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_lone_processes_of_srun_are_refused_with_the_command_that_joins_them(
    tiny: Callable[..., Config], environment: Set, command: str
) -> None:
    environment(**STEP)
    path = str(tiny().dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, [command, "--config", path])
    assert shown.exit_code == 1
    assert "srun started 8 processes that do not know of one another" in shown.output
    assert "srun --nodes=2 --ntasks=2 torchrun --nnodes=2 --nproc-per-node=4" in shown.output
    assert "--rdzv-endpoint=$(scontrol show hostnames" in shown.output
    assert shown.output.endswith(f"--no-python repa-cache {command}\n")


def test_what_one_process_does_is_to_be_started_once(
    tiny: Callable[..., Config], environment: Set
) -> None:
    environment(**STEP)
    path = str(tiny().dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["run", "--config", path])
    assert shown.exit_code == 1
    assert shown.output.endswith("It is for one process: srun --ntasks=1 repa-cache run\n")


def test_builds_that_srun_starts_share_the_work(
    tiny: Callable[..., Config], environment: Set
) -> None:
    environment(**STEP)
    path = str(tiny().dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["build", "--config", path], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "--ntasks=1 torchrun --nnodes=1"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "4"}, "torchrun --nproc-per-node=4 --no-python repa-cache train"),
    ],
)
def test_other_signs_of_lone_processes_are_understood(
    tiny: Callable[..., Config], environment: Set, variables: dict[str, str], said: str
) -> None:
    environment(**variables)
    path = str(tiny().dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["train", "--config", path])
    assert shown.exit_code == 1
    assert said in shown.output


@pytest.mark.parametrize(
    "variables",
    [
        # A batch script, and an interactive shell, of a job of eight tasks.
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        # torchrun, which srun started twice.
        {**STEP, **TORCHRUN},
    ],
)
def test_single_processes_and_those_of_torchrun_go_on(
    tiny: Callable[..., Config], environment: Set, variables: dict[str, str]
) -> None:
    environment(**variables)
    path = str(tiny().dataset.path.parent / "pipeline.toml")
    shown = CliRunner().invoke(app, ["train", "--config", path, "--set", "train.steps=0"])
    assert "train.steps" in shown.output
    assert "started" not in shown.output


def test_one_gpu_for_all_processes_of_torchrun_is_refused(environment: Set) -> None:
    environment(**TORCHRUN, LOCAL_RANK="0", LOCAL_WORLD_SIZE="8")
    with pytest.raises(DeviceError, match=r"'cuda:0' is one GPU, but 8 processes run on this ma"):
        find_device("cuda:0")


def test_a_process_without_a_gpu_is_told_how_many_there_are(
    environment: Set, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(**TORCHRUN, LOCAL_RANK="2", LOCAL_WORLD_SIZE="4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"Process 2 of 4 on .* has no GPU: there are 2\. Start"):
        find_device("cuda")


@pytest.mark.parametrize(
    ("name", "variables", "expected"),
    [
        ("cuda", {**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cuda:1"),
        ("cuda:3", {**TORCHRUN, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:3"),
        ("cuda:3", {}, "cuda:3"),
        ("cuda", {}, "cuda"),
        ("cuda", {"LOCAL_RANK": "3"}, "cuda"),
        ("cpu", {**TORCHRUN, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cpu"),
    ],
)
def test_a_process_of_torchrun_takes_the_gpu_of_its_number(
    environment: Set,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variables: dict[str, str],
    expected: str,
) -> None:
    environment(**variables)
    tried: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda _size, device: tried.append(str(device)))
    assert str(find_device(name)) == expected
    assert tried == [expected]


def test_a_device_that_torch_does_not_know_is_named() -> None:
    with pytest.raises(DeviceError, match="There is no device 'gpu'"):
        find_device("gpu")
    with pytest.raises(DeviceError, match="'meta' has shapes alone"):
        find_device("meta")
