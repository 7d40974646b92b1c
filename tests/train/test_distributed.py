"""Training in several processes; one launch of torchrun serves many tests, as it takes long."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import TOOLS
from reference import golden_model
from runs import assert_equal_runs, log_values, newest, trained
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config, load_config
from stages.train.compute import synchronised

LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
FSDP = "train.compute.parallel=fsdp"
# Each is trained in one process and in two.
VARIANTS = {
    "ddp": [],
    "nt-xent": ["train.align.0.kind=nt-xent"],
    "fsdp": [FSDP],
    "fsdp-end-of-alignment": ["train.align.0.until=2", FSDP],
}
MORE_VARIANTS = {
    "micro-batches": ["train.compute.micro_batches=2"],
    "fsdp-micro-batches": [FSDP, "train.compute.micro_batches=2"],
    "dit": ["train.model=DiT-XS/2", FSDP],
    "end-of-alignment": ["train.align.0.until=2"],
}
# Half precision rounds sums in another order to other numbers.
HALF = {
    f"{parallel}-{precision}": [
        f"train.precision={precision}",
        f"train.compute.parallel={parallel}",
    ]
    for parallel in ("ddp", "fsdp")
    for precision in ("bfloat16", "float16")
}


def launch(folder: Path, scenarios: list[list[str]]) -> None:
    path = folder / "scenarios.json"
    path.write_text(json.dumps(scenarios))
    program = TOOLS / "ranks.py"
    done = subprocess.run(
        [sys.executable, *LAUNCH, str(program), str(folder / "pipeline.toml"), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Trained:
    """Runs of every variant, in one process and in two."""

    def __init__(self, built: Path, folder: Path) -> None:
        self.folder = folder
        self.config = built / "pipeline.toml"

    def overrides(self, name: str, *more: str) -> list[str]:
        run = f"train.run={self.folder / name}"
        return [run, f"cache.path={self.config.parent / 'tiny.zarr'}", *more]

    def run(self, name: str) -> Config:
        return load_config(self.config, self.overrides(name))


@pytest.fixture(scope="module")
def runs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    runs = Trained(built, tmp_path_factory.mktemp("ranks"))
    (runs.folder / "pipeline.toml").write_text(runs.config.read_text())
    scenarios = [runs.overrides(f"two-{name}", *more) for name, more in VARIANTS.items()]
    for name, settings in VARIANTS.items():
        trained(load_config(runs.config, runs.overrides(f"alone-{name}", *settings)))
    for name in ("ddp", "fsdp"):
        for steps in (2, 4):
            more = [*VARIANTS[name], f"train.steps={steps}"]
            scenarios.append(runs.overrides(f"resumed-{name}", *more))
        shrunk = runs.overrides(f"shrunk-{name}", *VARIANTS[name], "train.steps=2")
        scenarios.append(shrunk)
        trained(load_config(runs.config, runs.overrides(f"grown-{name}", "train.steps=2")))
        scenarios.append(runs.overrides(f"grown-{name}", *VARIANTS[name]))
    launch(built, scenarios)
    return runs


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_like_one(runs: Trained, name: str) -> None:
    assert_close_runs(runs.run(f"two-{name}"), runs.run(f"alone-{name}"), 1e-4)


@pytest.mark.slow
def test_more_ways_of_two_processes_train_like_one(built: Path, tmp_path: Path) -> None:
    runs = Trained(built, tmp_path)
    launch(built, [runs.overrides(f"two-{name}", *more) for name, more in MORE_VARIANTS.items()])
    for name, settings in MORE_VARIANTS.items():
        trained(load_config(runs.config, runs.overrides(f"alone-{name}", *settings)))
        assert_close_runs(runs.run(f"two-{name}"), runs.run(f"alone-{name}"), 1e-4)


@pytest.mark.slow
def test_half_precision_is_the_same_in_whole_and_in_parts(built: Path, tmp_path: Path) -> None:
    runs = Trained(built, tmp_path)
    launch(built, [runs.overrides(name, *settings) for name, settings in HALF.items()])
    for precision in ("bfloat16", "float16"):
        assert_close_runs(runs.run(f"fsdp-{precision}"), runs.run(f"ddp-{precision}"), 3e-3)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(runs: Trained, name: str) -> None:
    assert_equal_runs(runs.run(f"resumed-{name}"), runs.run(f"two-{name}"))


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_run_of_one_process_goes_on_in_two(runs: Trained, name: str) -> None:
    assert_close_runs(runs.run(f"grown-{name}"), runs.run("alone-ddp"), 1e-4)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_run_of_two_processes_goes_on_in_one(runs: Trained, name: str) -> None:
    trained(runs.run(f"shrunk-{name}"))
    assert_close_runs(runs.run(f"shrunk-{name}"), runs.run("alone-ddp"), 1e-4)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_gradients_are_exchanged_once_for_all_micro_batches(
    tmp_path: Path, sit_repa: Any, micro_batches: int
) -> None:
    exchanged = 0

    def exchange(
        _: object, bucket: torch.distributed.GradBucket
    ) -> torch.futures.Future[torch.Tensor]:
        nonlocal exchanged
        exchanged += 1
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, world_size=1, rank=0)
    try:
        model = golden_model(sit_repa)
        network = DistributedDataParallel(model)
        network.register_comm_hook(None, exchange)
        for number in range(micro_batches):
            with synchronised(network, is_last=number == micro_batches - 1):
                velocity, hidden = network(
                    sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"], {2}
                )
                projected = (projector(hidden[2]) for projector in model.projectors)
                sum(tensor.sum() for tensor in (velocity, *projected)).backward()
        assert exchanged == 1
    finally:
        torch.distributed.destroy_process_group()


def assert_close_runs(one: Config, other: Config, tolerance: float) -> None:
    for line, expected in zip(log_values(one), log_values(other), strict=True):
        assert line == pytest.approx(expected, rel=tolerance, abs=tolerance / 10)
    for weights in ("model", "ema"):
        theirs = newest(other).weights(weights)
        for key, tensor in newest(one).weights(weights).items():
            torch.testing.assert_close(tensor, theirs[key], rtol=tolerance, atol=tolerance / 10)
