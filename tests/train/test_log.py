"""Where the log of a run goes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import log_values, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import Config
from stages.train.log import SPEEDS, log_path, read_log
from stages.train.train_settings import RunError


def test_a_line_says_what_training_did_and_how_fast(trainable: Callable[..., Config]) -> None:
    config = trainable("train.log_every=2")
    trained(config)
    lines = read_log(log_path(config.train.run))
    assert [line["step"] for line in lines] == [2, 4]
    expected = {"loss", "gradient_norm", "skipped", "denoising", "alignment/efficientnet-lite0"}
    for line in lines:
        assert expected.union(SPEEDS) < line.keys()
        assert line["images_per_second"] == pytest.approx(4 * line["steps_per_second"])
        assert 0 <= line["data_wait"] < 1
        assert 0.1 < line["memory_gb"] < 24


def test_lines_hold_the_mean_of_all_steps_since_the_last(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    trained(trainable())
    single = [line["loss"] for line in log_values(trainable())]
    config = trainable("train.log_every=4", f"train.run={tmp_path / 'mean'}")
    trained(config)
    (line,) = log_values(config)
    assert line["loss"] == pytest.approx(sum(single) / 4, rel=1e-6)


def test_tensorboard_gets_every_value_and_hides_steps_that_are_made_again(
    trainable: Callable[..., Config],
) -> None:
    settings = ("train.tensorboard=true", "train.checkpoint_every=2")
    for steps in (3, 4):
        trained(trainable(*settings, f"train.steps={steps}"))
    events = EventAccumulator(str(trainable().train.run / "tensorboard")).Reload()
    for name in log_values(trainable())[0]:
        if name != "step":
            lines = [line for line in log_values(trainable()) if name in line]
            expected = {line["step"]: line[name] for line in lines}
            found = {e.step: e.value for e in events.Scalars(name.replace("@", "/"))}
            assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_weights_and_biases_gets_every_line_in_one_run(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (2, 4):
        trained(trainable("train.wandb=repa", f"train.steps={steps}"))
    run = trainable().train.run
    parts = sorted((run / "wandb").glob("offline-run-*"))
    assert len({part.name.rpartition("-")[2] for part in parts}) == 1
    assert parts[0].name.endswith((run / "wandb-id").read_text())
    assert len(list(run.rglob("*.wandb"))) == len(parts) == 2


@pytest.mark.parametrize(
    ("setting", "module"),
    [("train.tensorboard=true", "torch.utils.tensorboard"), ("train.wandb=repa", "wandb")],
)
def test_a_package_that_is_not_installed_is_named(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, setting: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=r"pip install 'repa-cache\[logs\]'"):
        trained(trainable(setting))


def test_the_log_is_valid_json_line_by_line(trainable: Callable[..., Config]) -> None:
    trained(trainable())
    for line in log_path(trainable().train.run).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
