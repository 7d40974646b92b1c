"""Training in several processes; one launch of torchrun serves many tests, as it takes long."""

import math
import mmap
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_tokens import entries
from launching import assert_close_runs, launch, torchrun
from methods import OF_LAYERS
from places import TOOLS
from reference import golden_model
from runs import CPU, assert_equal_runs, cached_batches, trained
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config, load_config
from stages.placement import Placement
from stages.train.compute import HALF_PRECISIONS, synchronised
from stages.train.latent_mean import read_mean
from stages.weights.run_folder import latent_mean_path

DIRECTION = 'train.align.1={kind = "direction"}'
DDP, RESHARD = "train.compute.parallel=ddp", "train.compute.reshard=true"
# How far the sums of gradients in another order lead apart within four steps.
SAME = 1e-5
# Each is trained in one process and in two.
VARIANTS = {
    "ddp": [DDP],
    "fsdp": [],
    "fsdp-resharded": [RESHARD],
    "fsdp-class-token": [entries()],
}
MORE_VARIANTS = {
    "nt-xent": ["train.align.0.kind=nt-xent", DDP],
    "fsdp-nt-xent": ["train.align.0.kind=nt-xent"],
    "fsdp-end-of-alignment": ["train.align.0.until=2"],
    "micro-batches": ["train.compute.micro_batches=2", DDP],
    "fsdp-micro-batches": ["train.compute.micro_batches=2"],
    "fsdp-resharded-micro-batches": ["train.compute.micro_batches=2", RESHARD],
    "fsdp-recomputed": ["train.compute.recompute_activations=true"],
    "dit": ["train.model=DiT-XS/2"],
    "end-of-alignment": ["train.align.0.until=2", DDP],
    "layers": [*OF_LAYERS.values(), DIRECTION, DDP],
    "fsdp-layers": [*OF_LAYERS.values(), DIRECTION],
    "fsdp-irepa": ["train.align.0.kind=irepa"],
    "token-similarity": [
        'train.align.1={kind="token-similarity", encoder="efficientnet-lite0", depth=2}'
    ],
    "sra": ['train.align.1={kind="sra", depth=1, teacher_depth=3}', DDP],
    "fsdp-sra": ['train.align.1={kind="sra", depth=1, teacher_depth=3, decay=2, constant=1}'],
    "fading": ["train.align.0.until=4", "train.align.0.fade=3"],
    "class-token": [entries(), DDP],
}
# Their losses are over the images of a process: two of them train like one in two parts.
OF_A_PROCESS = {"contrastive": ['train.align.1={kind="contrastive"}']}
MORE_OF_A_PROCESS = {
    "contrastive-skipping": [
        'train.align.1={kind="contrastive", negatives="other-class", skip_unlabelled=true}'
    ],
    "contrastive-rolled": ['train.align.1={kind="contrastive", negatives="rolled"}'],
    "dispersive": ['train.align.1={kind="dispersive"}'],
}
# Half precision rounds sums in another order to other numbers.
HALF = {
    f"{parallel}-{precision}": [
        f"train.precision={precision}",
        f"train.compute.parallel={parallel}",
    ]
    for parallel in ("ddp", "fsdp")
    for precision in HALF_PRECISIONS
}
# Parts travel in bfloat16, and are rounded to 8 bits from there.
TOLERANCES = {"bfloat16": 3e-3, "float16": 3e-3, "float8": 0.1}


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


def train_alone(
    runs: Trained, variants: dict[str, list[str]], of_a_process: dict[str, list[str]]
) -> list[list[str]]:
    """Train what two processes are compared with, and say how they are to train."""
    for name, settings in variants.items():
        trained(load_config(runs.config, runs.overrides(f"alone-{name}", *settings)))
    for name, settings in of_a_process.items():
        trained(in_parts(load_config(runs.config, runs.overrides(f"alone-{name}", *settings))))
    both = {**variants, **of_a_process}
    return [runs.overrides(f"two-{name}", *settings) for name, settings in both.items()]


@pytest.fixture(scope="module")
def runs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    runs = Trained(built, tmp_path_factory.mktemp("ranks"))
    (runs.folder / "pipeline.toml").write_text(runs.config.read_text())
    scenarios = train_alone(runs, VARIANTS, OF_A_PROCESS)
    for name, other in (("ddp", "fsdp"), ("fsdp", "ddp")):
        for steps in (2, 4):
            more = [*VARIANTS[name], f"train.steps={steps}"]
            scenarios.append(runs.overrides(f"resumed-{name}", *more))
        scenarios.append(runs.overrides(f"switched-{name}", *VARIANTS[name], "train.steps=2"))
        scenarios.append(runs.overrides(f"switched-{name}", *VARIANTS[other]))
        shrunk = runs.overrides(f"shrunk-{name}", *VARIANTS[name], "train.steps=2")
        scenarios.append(shrunk)
        trained(load_config(runs.config, runs.overrides(f"grown-{name}", "train.steps=2")))
        scenarios.append(runs.overrides(f"grown-{name}", *VARIANTS[name]))
    launch(built, scenarios)
    return runs


@pytest.mark.parametrize("name", [*VARIANTS, *OF_A_PROCESS])
def test_two_processes_train_like_one(runs: Trained, name: str) -> None:
    assert_close_runs(runs.run(f"two-{name}"), runs.run(f"alone-{name}"), 1e-4)


def test_blocks_that_are_gathered_twice_are_the_same_to_the_bit(runs: Trained) -> None:
    assert_equal_runs(runs.run("two-fsdp-resharded"), runs.run("two-fsdp"))


def test_two_processes_keep_the_mean_of_the_latents_of_one(runs: Trained) -> None:
    two, one = (
        read_mean(latent_mean_path(runs.run(f"{name}-contrastive").train.run))
        for name in ("two", "alone")
    )
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_more_ways_of_two_processes_train_like_one(built: Path, tmp_path: Path) -> None:
    runs = Trained(built, tmp_path)
    launch(built, train_alone(runs, MORE_VARIANTS, MORE_OF_A_PROCESS))
    for name in (*MORE_VARIANTS, *MORE_OF_A_PROCESS):
        assert_close_runs(runs.run(f"two-{name}"), runs.run(f"alone-{name}"), 1e-4)


@pytest.mark.slow
def test_four_processes_with_a_part_each_train_like_four_with_the_whole_and_like_one(
    built: Path, tmp_path: Path
) -> None:
    runs = Trained(built, tmp_path)
    kinds = {"ddp": [DDP], "fsdp": []}
    launch(built, [runs.overrides(name, *more) for name, more in kinds.items()], processes=4)
    trained(load_config(runs.config, runs.overrides("alone")))
    assert_close_runs(runs.run("fsdp"), runs.run("ddp"), SAME)
    assert_close_runs(runs.run("fsdp"), runs.run("alone"), 1e-4)


@pytest.mark.slow
def test_half_precision_is_the_same_in_whole_and_in_parts(built: Path, tmp_path: Path) -> None:
    runs = Trained(built, tmp_path)
    launch(built, [runs.overrides(name, *settings) for name, settings in HALF.items()])
    for precision, tolerance in TOLERANCES.items():
        assert_close_runs(runs.run(f"fsdp-{precision}"), runs.run(f"ddp-{precision}"), tolerance)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(runs: Trained, name: str) -> None:
    assert_equal_runs(runs.run(f"resumed-{name}"), runs.run(f"two-{name}"))


def test_what_each_process_holds_a_part_of_is_what_each_would_hold_whole(runs: Trained) -> None:
    assert_close_runs(runs.run("two-fsdp"), runs.run("two-ddp"), SAME)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_run_of_one_kind_goes_on_as_the_other(runs: Trained, name: str) -> None:
    assert_close_runs(runs.run(f"switched-{name}"), runs.run("two-ddp"), SAME)


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
                velocity, hidden, _ = network(
                    sit_repa["linear.model_input"], sit_repa["in.t"], sit_repa["in.y"], {2}
                )
                projected = (projector(hidden[2]) for projector in model.projectors)
                sum(tensor.sum() for tensor in (velocity, *projected)).backward()
        assert exchanged == 1
    finally:
        torch.distributed.destroy_process_group()


def in_parts(config: Config) -> Config:
    """The same with the batch in two parts, which users are not let do: it is another loss."""
    compute = config.train.compute.model_copy(update={"micro_batches": 2})
    return config.model_copy(update={"train": config.train.model_copy(update={"compute": compute})})


@pytest.mark.slow
def test_ranks_of_a_machine_read_the_same_batches_of_one_copy(built: Path, tmp_path: Path) -> None:
    said = torchrun(TOOLS / "sharing.py", built / "pipeline.toml", tmp_path)
    config = load_config(built / "pipeline.toml")
    told = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    held = 0
    for rank, found in enumerate(told):
        with closing(cached_batches(config, Placement(CPU.device, rank, 2))) as alone:
            for step in range(config.train.steps):
                for number, array in enumerate(alone.take(step)):
                    np.testing.assert_array_equal(found[f"{step} {number}"], array.numpy())
            held = sum(math.prod(s.shape) * s.dtype.itemsize for s in alone._ring._sources)
    pages = mmap.PAGESIZE * len(alone._ring._sources)
    assert held <= sum(int(found["shared"]) for found in told) * 1024 < held + pages
    assert said.count("each of 2 processes holds a copy of its own of the arrays in memory") == 1
    assert "planted" in said
