"""Losses and gradients that are infinite or not a number."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import assert_equal_runs, log_values, newest, trained

from cache.reader import Cache
from pipeline.config import Config
from stages.train.loop import NonFiniteLossError
from stages.train.randomness import Randomness
from stages.weights.checkpoint import Checkpoint, checkpoints

BAD_STEP = 2


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step whose noise is not a number."""
    real = Randomness.at

    def at(own: Randomness, step: int) -> dict[str, torch.Tensor]:
        drawn = real(own, step)
        noise = drawn["noise"].index_fill(0, torch.tensor(1), torch.nan)
        return {**drawn, "noise": noise} if step == BAD_STEP else drawn

    monkeypatch.setattr(Randomness, "at", at)


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("log_every", [1, 3, 100])
def test_a_loss_that_is_no_number_stops_with_step_rows_and_the_last_good_checkpoint(
    trainable: Callable[..., Config], log_every: int
) -> None:
    config = trainable(f"train.log_every={log_every}", "train.checkpoint_every=2")
    with pytest.raises(NonFiniteLossError) as caught:
        trained(config)
    assert f"step {BAD_STEP + 1}: the loss or its gradient is infinite" in str(caught.value)
    assert f"The last good checkpoint is {newest(config).folder}" in str(caught.value)
    assert newest(config).step == BAD_STEP
    listed = json.loads((config.train.run / "nonfinite-step-00000003.json").read_text())
    keys = Cache(config.cache.path).rows.key
    assert len(listed["images"]) == config.train.batch_size
    for row, key in listed["images"].items():
        assert keys[int(row)] == key
        assert f"{row} ({key})" in str(caught.value)


def test_weights_that_explode_stop_training(trainable: Callable[..., Config]) -> None:
    with pytest.raises(NonFiniteLossError, match="There is no checkpoint yet"):
        trained(trainable("train.learning_rate=1e30", "train.checkpoint_every=4"))


@pytest.mark.usefixtures("spoilt")
def test_a_skipped_step_changes_no_weight_and_is_counted(
    trainable: Callable[..., Config],
) -> None:
    config = trainable(
        "train.on_nonfinite=skip", "train.checkpoint_every=1", "train.keep=4", "train.log_every=2"
    )
    trained(config)
    before, after, last = (Checkpoint(c.folder) for c in checkpoints(config.train.run)[1:])
    assert (before.step, after.step) == (BAD_STEP, BAD_STEP + 1)
    assert_same(before.weights("model"), after.weights("model"), is_same=True)
    assert_same(after.weights("model"), last.weights("model"), is_same=False)
    assert [line["skipped"] for line in log_values(config)] == [0, 1]
    assert all(value == value for line in log_values(config) for value in line.values())


def assert_same(one: dict[str, Any], other: dict[str, Any], *, is_same: bool) -> None:
    changed = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert (not changed) == is_same, changed


def test_float16_scales_its_gradients_skips_what_overflows_and_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = torch.amp.GradScaler

    def scaler(device: str, *, enabled: bool) -> torch.amp.GradScaler:
        return huge(device, init_scale=2.0**28, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    settings = ("train.precision=float16", "train.checkpoint_every=100")
    whole = trainable(f"train.run={tmp_path / 'whole'}", *settings, "train.steps=24")
    trained(whole)
    skipped = [line["skipped"] for line in log_values(whole)]
    assert 0 < sum(skipped) < 20
    for steps in (5, 24):
        trained(trainable(*settings, f"train.steps={steps}"))
    assert_equal_runs(trainable(), whole)
    assert newest(whole).state["scaler"]["scale"] < 2.0**28
    assert newest(whole).state["scaler"] == newest(trainable()).state["scaler"]
