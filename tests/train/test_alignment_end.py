"""What happens to a run at the step at which alignment ends."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compiling import LOOKING
from marking import few_fast
from runs import assert_equal_runs, log_values, newest, trained

from pipeline.config import Config, ConfigError
from stages.train.batches import CachedBatches
from stages.train.run import Run
from stages.train.terms.repa import Repa
from stages.weights.checkpoint import checkpoints

FADING = ("train.align.0.until=5", "train.align.0.fade=4", "train.steps=6", "train.log_every=1")
UNTIL = ("train.align.0.until=3", "train.steps=6", "train.log_every=2", "train.keep=10")


def weights_at(config: Config, step: int) -> dict[str, torch.Tensor]:
    (found,) = (c for c in checkpoints(config.train.run) if c.step == step)
    return found.weights("model")


def test_after_its_end_no_alignment_is_logged_and_projectors_rest(
    trainable: Callable[..., Config],
) -> None:
    config = trainable(*UNTIL)
    trained(config)
    lines = log_values(config)
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert ["alignment/efficientnet-lite0" in line for line in lines] == [True, True, False, False]
    assert [c.step for c in checkpoints(config.train.run)] == [2, 3, 4, 6]
    before, after = weights_at(config, 3), weights_at(config, 6)
    for name, tensor in after.items():
        is_moved = not torch.equal(tensor, before[name])
        assert is_moved == (not name.startswith("projectors.") and name != "pos_embed"), name


def test_until_its_end_a_run_is_the_one_that_is_aligned_throughout(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    ended, throughout = trainable(*UNTIL), trainable(f"train.run={tmp_path / 'other'}")
    trained(ended)
    trained(trainable(f"train.run={tmp_path / 'other'}", "train.steps=3"))
    for name, tensor in newest(throughout).weights("model").items():
        assert torch.equal(tensor, weights_at(ended, 3)[name]), name


@pytest.mark.parametrize("stop", few_fast([3, 2, 5]))
def test_a_run_resumes_bit_for_bit_on_either_side_of_the_end(
    trainable: Callable[..., Config], tmp_path: Path, stop: int
) -> None:
    whole = trainable(*UNTIL, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    trained(trainable(*UNTIL, f"train.steps={stop}"))
    trained(trainable(*UNTIL))
    assert_equal_runs(trainable(), whole)


def test_tokens_are_not_read_once_alignment_has_ended(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = CachedBatches.take

    def take(batches: CachedBatches, step: int) -> list[torch.Tensor]:
        taken = real(batches, step)
        read.append(len(taken))
        return taken

    monkeypatch.setattr(CachedBatches, "take", take)
    trained(trainable(*UNTIL))
    assert read == [2, 2, 2, 1, 1, 1]


@LOOKING
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_the_model_of_before_is_gone_when_that_of_after_is_made(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, compiled: str
) -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    real, compiler = Run.__init__, torch.compile

    def made(run: Run, *arguments: Any, **options: Any) -> None:
        alive.append(sum(tensor() is not None for tensor in tensors))
        real(run, *arguments, **options)
        held = [*run.model.parameters(), *run.averages["ema"].tensors.values()]
        tensors.extend(weakref.ref(tensor) for tensor in held)

    monkeypatch.setattr(Run, "__init__", made)
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, backend="eager"))
    trained(trainable(*UNTIL, f"train.compute.compile={compiled}"))
    assert alive == [0, 0]
    assert len(tensors) > 100


def test_a_weight_falls_linearly_to_nothing_at_the_end_and_never_comes_back() -> None:
    term = Repa(encoder="e", until=10, fade=4)
    assert [term.share(step) for step in range(4, 10)] == [1, 1, 1, 0.75, 0.5, 0.25]
    assert not term.is_active(10)
    assert Repa(encoder="e", until=10).share(9) == Repa(encoder="e").share(9) == 1


def test_what_fades_is_minimised_with_its_share_of_the_weight(
    trainable: Callable[..., Config],
) -> None:
    trained(trainable(*FADING))
    name = "alignment/efficientnet-lite0"
    for step, line in enumerate(log_values(trainable(*FADING))):
        share = min(1, max(0, (5 - step) / 4))
        expected = line["denoising"] + 0.5 * share * line.get(name, 0)
        assert line["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stop", few_fast([3, 1, 5]))
def test_a_run_that_fades_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, stop: int
) -> None:
    whole = trainable(*FADING, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    trained(trainable(*FADING, f"train.steps={stop}"))
    trained(trainable(*FADING))
    assert_equal_runs(trainable(), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.align.0.fade=2",), "fade: 2 steps before an end, but there is no until"),
        (("train.align.0.fade=4", "train.align.0.until=3"), "fade: 4 .*, but until is 3"),
    ],
)
def test_a_fade_needs_an_end_and_as_many_steps_before_it(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(*settings)
