"""Training in several processes; one launch of torchrun serves many tests, as it takes long."""

from pathlib import Path
from typing import Any

import pytest
import torch
from class_tokens import entries
from launching import assert_close_runs, launch
from methods import OF_LAYERS
from reference import golden_model
from runs import assert_equal_runs, trained
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Config, load_config
from stages.train.compute import synchronised
from stages.train.latent_mean import read_mean
from stages.weights.run_folder import latent_mean_path

DIRECTION = 'train.align.1={kind = "direction"}'
FSDP = "train.compute.parallel=fsdp"
# Each is trained in one process and in two.
VARIANTS = {
    "ddp": [],
    "fsdp": [FSDP],
    "fsdp-class-token": [entries(), FSDP],
}
MORE_VARIANTS = {
    "nt-xent": ["train.align.0.kind=nt-xent"],
    "fsdp-end-of-alignment": ["train.align.0.until=2", FSDP],
    "micro-batches": ["train.compute.micro_batches=2"],
    "fsdp-micro-batches": [FSDP, "train.compute.micro_batches=2"],
    "dit": ["train.model=DiT-XS/2", FSDP],
    "end-of-alignment": ["train.align.0.until=2"],
    "layers": [*OF_LAYERS.values(), DIRECTION],
    "fsdp-layers": [*OF_LAYERS.values(), DIRECTION, FSDP],
    "fsdp-irepa": ["train.align.0.kind=irepa", FSDP],
    "token-similarity": [
        'train.align.1={kind="token-similarity", encoder="efficientnet-lite0", depth=2}'
    ],
    "sra": ['train.align.1={kind="sra", depth=1, teacher_depth=3}'],
    "fsdp-sra": [
        'train.align.1={kind="sra", depth=1, teacher_depth=3, decay=2, constant=1}',
        FSDP,
    ],
    "fading": ["train.align.0.until=4", "train.align.0.fade=3"],
    "class-token": [entries()],
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
    for precision in ("bfloat16", "float16")
}


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


@pytest.mark.parametrize("name", [*VARIANTS, *OF_A_PROCESS])
def test_two_processes_train_like_one(runs: Trained, name: str) -> None:
    assert_close_runs(runs.run(f"two-{name}"), runs.run(f"alone-{name}"), 1e-4)


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
