import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import flip
from marking import few_fast
from runs import CPU, assert_equal_runs, log_values, newest, trained, trained_in_parts
from tiny import save_jpeg

from cache.errors import DamagedCacheError, IncompleteCacheError
from cache.locking.locks import claimed
from pipeline.config import Config
from stages.encode.build import build
from stages.processes import InterruptedWorkError
from stages.train.loop import train
from stages.train.meter import Meter
from stages.train.optim import Average, learning_rate
from stages.train.train_settings import RunError
from stages.weights.checkpoint import checkpoints


def test_four_steps_are_two_and_two(trainable: Callable[..., Config], tmp_path: Path) -> None:
    whole = trainable(f"train.run={tmp_path / 'whole'}")
    trained(whole)
    assert trained(trainable("train.steps=2")).step == 2
    resumed = trained(trainable())
    assert (resumed.start, resumed.step) == (2, 4)
    assert_equal_runs(whole, trainable())
    assert trained(trainable()).start == 4


def test_a_run_stopped_by_a_signal_saves_and_goes_on_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = trainable(f"train.run={tmp_path / 'whole'}"), trainable()
    trained(whole)
    real = Average.update

    def signalled(average: Average) -> None:
        real(average)
        if len(log_values(stopped)) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Average, "update", signalled)
    with pytest.raises(InterruptedWorkError, match="Stopped after step 3 of 4"):
        trained(stopped)
    assert newest(stopped).state["step"] == 3
    trained(stopped)
    assert_equal_runs(whole, stopped)


class Killed(BaseException):
    pass


def test_a_run_killed_between_checkpoints_repeats_the_same_steps(
    trainable: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = trainable(f"train.run={tmp_path / 'whole'}"), trainable()
    trained(whole)
    real = Meter.add

    def dies_after_three(meter: Meter, measured: Any) -> None:
        if len(log_values(killed)) == 3:
            raise Killed
        real(meter, measured)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Meter, "add", dies_after_three)
        trained(killed)
    assert (len(log_values(killed)), newest(killed).state["step"]) == (3, 2)
    trained(killed)
    assert_equal_runs(whole, killed)


def torchrun(folder: Path, *arguments: str) -> str:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*launch, "-m", "pipeline", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_and_sample_like_one(
    built: Path, trainable: Callable[..., Config], tmp_path: Path
) -> None:
    trained(trainable())
    settings = ["--set", f"train.run={tmp_path / 'two'}"]
    assert torchrun(built, "train", *settings).count("4 steps made") == 1
    alone, shared = newest(trainable()), newest(trainable(f"train.run={tmp_path / 'two'}"))
    for key, tensor in alone.weights("model").items():
        torch.testing.assert_close(tensor, shared.weights("model")[key], rtol=1e-4, atol=1e-5)
    torchrun(built, "sample", *settings)
    assert len(list((tmp_path / "two").glob("samples/*/*.png"))) == 6


@pytest.mark.slow
def test_training_needs_neither_timm_nor_diffusers(built: Path, tmp_path: Path) -> None:
    script = f"""
import sys
for name in ("timm", "diffusers", "torchvision", "stages.vision",
             "stages.encode.networks.frozen_encoder"):
    sys.modules[name] = None
from pathlib import Path
import torch
from stages.placement import Placement
from stages.weights.checkpoint import checkpoints
from stages.train.loop import train
from stages.train.train_settings import CachedTensors, TrainSettings
settings = TrainSettings(run=Path({str(tmp_path / "run")!r}), model="SiT-XS/2", steps=2,
                         batch_size=4, log_every=1,
                         align=({{"kind": "repa", "encoder": "efficientnet-lite0", "depth": 2}},))
tensors = CachedTensors(Path({str(built / "tiny.zarr")!r}), "latents/tiny-vae")
print(train(settings, tensors, Placement(torch.device("cpu"))).step)
assert not any(name.startswith("stages.encode") and module for name, module in sys.modules.items())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr


def test_alignment_falls(trainable: Callable[..., Config]) -> None:
    trained(trainable("train.steps=40", "train.checkpoint_every=40"))
    alignment = [line["alignment/efficientnet-lite0"] for line in log_values(trainable())]
    assert np.mean(alignment[-5:]) < np.mean(alignment[:5]) - 0.1


def test_a_run_without_encoders_trains_plain_sit(trainable: Callable[..., Config]) -> None:
    assert trained(trainable("train.align=[]")).step == 4
    assert not any("alignment" in name for name in log_values(trainable())[0])


def test_only_the_newest_checkpoints_are_kept(trainable: Callable[..., Config]) -> None:
    (trainable().train.run / "checkpoints" / ".step-00000002.1.partial").mkdir(parents=True)
    trained(trainable("train.checkpoint_every=1", "train.keep=2"))
    kept = sorted(path.name for path in (trainable().train.run / "checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000004"]


def test_a_run_that_is_being_trained_is_left_alone(trainable: Callable[..., Config]) -> None:
    config = trainable()
    config.train.run.mkdir()
    with (
        claimed(config.train.run / ".lock"),
        pytest.raises(RunError, match=f"is being trained by process {os.getpid()} on "),
    ):
        trained(config)
    assert trained(config).step == 4


def test_checkpoints_of_every_nth_step_stay_for_ever(trainable: Callable[..., Config]) -> None:
    every = ("train.checkpoint_every=1", "train.keep=1", "train.keep_every=2", "train.steps=5")
    trained(trainable(*every))
    assert [c.step for c in checkpoints(trainable().train.run)] == [2, 4, 5]


@pytest.mark.parametrize(
    "settings",
    few_fast(
        [
            ("train.model=DiT-XS/2",),
            ("train.warmup_steps=3", "train.weight_decay=0.1"),
            ("train.compute.recompute_activations=true", "train.compute.micro_batches=2"),
            ("train.align.0.kind=nt-xent",),
            ("train.qk_norm=true",),
            ("train.precision=bfloat16",),
        ],
        3,
    ),
    ids=lambda settings: settings[0],
)
def test_every_way_of_training_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    trained_in_parts(trainable, tmp_path, *settings, parts=(1, 4))


def test_the_learning_rate_rises_to_its_value(trainable: Callable[..., Config]) -> None:
    settings = trainable("train.warmup_steps=4").train
    rates = [learning_rate(settings, step) / settings.learning_rate for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]
    assert learning_rate(trainable().train, 0) == settings.learning_rate


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.align.0.depth=3", "align.0.depth: run 2, configuration 3"),
        ("train.seed=1", "seed: run 0, configuration 1"),
        ("train.align=[]", "align.0.encoder: "),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(
    trainable: Callable[..., Config], override: str, message: str
) -> None:
    trained(trainable("train.steps=2"))
    with pytest.raises(RunError, match=message):
        trained(trainable(override))


def test_a_run_does_not_go_on_with_other_tensors(trainable: Callable[..., Config]) -> None:
    trained(trainable("train.steps=2"))
    path = newest(trainable()).folder / "state.json"
    state = json.loads(path.read_text())
    state["columns"]["latents/tiny-vae"] = "0" * 64
    path.write_text(json.dumps(state))
    with pytest.raises(RunError, match="made with other columns"):
        trained(trainable())


def test_a_run_does_not_go_on_with_other_images(
    built: Path, tmp_path: Path, trainable: Callable[..., Config]
) -> None:
    trained(trainable("train.steps=2"))
    shutil.copytree(built / "images", tmp_path / "images")
    shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr")
    save_jpeg(tmp_path / "images/class1/new.jpg", seed=0)
    grown = trainable(f"dataset.path={tmp_path / 'images'}", f"cache.path={tmp_path / 'tiny.zarr'}")
    build(grown.encode, torch.device("cpu"))
    with pytest.raises(RunError, match="made with other rows"):
        trained(grown)


def test_how_the_cache_is_read_changes_nothing(trainable: Callable[..., Config]) -> None:
    trained(trainable("train.steps=4"))
    expected = newest(trainable()).weights("model")
    shutil.rmtree(trainable().train.run)
    reading = ("threads=1", "ahead=1", "memory_gb=0", "verify=false", "timeout_seconds=60")
    trained(trainable("train.steps=4", *(f"train.reading.{setting}" for setting in reading)))
    for name, tensor in newest(trainable()).weights("model").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_damage_stops_training_with_the_row_named(
    built: Path, tmp_path: Path, trainable: Callable[..., Config]
) -> None:
    shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr")
    flip(tmp_path / "tiny.zarr/features/efficientnet-lite0/tokens/c.1.0.0", 5000)
    damaged = trainable(f"cache.path={tmp_path / 'tiny.zarr'}", "train.reading.memory_gb=0")
    with pytest.raises(DamagedCacheError, match="row 8 is not what was written"):
        trained(damaged)


def test_an_encoder_that_was_not_built_is_refused(trainable: Callable[..., Config]) -> None:
    config = trainable()
    term = config.train.align[0].model_copy(update={"encoder": "dinov2-vit-b"})
    settings = config.train.model_copy(update={"align": (term,)})
    with pytest.raises(IncompleteCacheError, match="no column features/dinov2-vit-b"):
        train(settings, config.tensors, CPU)


def test_tokens_on_another_grid_are_refused_with_both_grids(
    trainable: Callable[..., Config],
) -> None:
    config = trainable()
    settings = config.train.model_copy(update={"model": "SiT-XS/1"})
    with pytest.raises(RunError, match=r"16 tokens \(4 x 4\), SiT-XS/1 has 64 \(8 x 8\)"):
        train(settings, config.tensors, CPU)
