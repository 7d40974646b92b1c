"""SRA: hidden tokens aligned to those of the moving average, from its formula."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE
from runs import assert_falls, log_values, newest, trained, trained_in_parts
from safetensors.torch import load_file
from stepping import model_of, settings_of, stepped
from torch.nn import functional as F
from torch.testing import assert_close

from pipeline.config import Config, ConfigError
from stages.train.step import Step
from stages.train.terms.run_terms import objective_of
from stages.train.terms.sra import INTERVAL, SelfAlignment
from stages.weights.export import export
from stages.weights.export_options import ExportOptions, Layout

ENTRY = {"kind": "sra", "depth": 1, "teacher_depth": 2}
TERM = 'train.align.1={kind = "sra", depth = 1, teacher_depth = 3}'


@pytest.mark.parametrize("similarity", ["smooth-l1", "cosine"])
@pytest.mark.parametrize("model", ["SiT-B/2", "DiT-B/2"])
def test_loss_and_gradients_are_those_of_the_formula(similarity: str, model: str) -> None:
    options = {**ENTRY, "similarity": similarity}
    settings = settings_of([options], model=model)
    torch.manual_seed(1)
    clean, noise = torch.randn(2, 3, 4, 8, 8)
    is_sit = model.startswith("SiT")
    time = torch.tensor([0.1, 0.5, 0.9]) if is_sit else torch.tensor([100, 500, 900])
    share, labels = torch.tensor([0.9, 0.5, 0.25]), torch.tensor([3, 1, 10])
    base = replace(BASE, learns_sigma=not is_sit)
    made, _ = model_of(settings, base, {})
    own, average = (
        {name: 0.2 * torch.randn_like(p) for name, p in made.state_dict().items()} for _ in "01"
    )
    found = stepped(
        settings,
        base,
        own,
        {"clean": clean, "labels": labels},
        {"time": time, "noise": noise, INTERVAL: torch.special.ndtri(share)},
        average,
    )

    level = time / (1 if is_sit else 1000)
    earlier = (level - 0.2 * share).clamp(min=0)
    assert earlier[0] == 0
    objective = objective_of(settings)
    teacher, _ = model_of(settings, base, {})
    teacher.load_state_dict(average)
    with torch.no_grad():
        then = objective.time(earlier)
        noisy, _ = objective.pose(clean, noise, then)
        target = teacher(noisy, then, labels, [2]).hidden[2]
    noisy, _ = objective.pose(clean, noise, time)
    hidden = found.model(noisy, time, labels, [1]).hidden[1]
    first, _, second = found.model.ap_heads[0]
    predicted = second(F.silu(first(hidden)))
    if similarity == "cosine":
        expected = -torch.cosine_similarity(predicted, target, dim=-1).mean()
    else:
        gap = (predicted - target).abs()
        expected = torch.where(gap < 0.05, gap**2 / 0.1, gap - 0.025).mean()
    assert_close(found.losses["sra"].mean(), expected, rtol=1e-5, atol=1e-6)
    weight = 0.5 if similarity == "cosine" else 0.2
    names, parameters = zip(*found.model.ap_heads.named_parameters(), strict=True)
    for name, parameter, gradient in zip(
        names, parameters, torch.autograd.grad(weight * expected, parameters), strict=True
    ):
        assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_teacher_sees_the_same_images_at_a_lower_level_of_noise() -> None:
    term, level = SelfAlignment(kind="sra"), torch.tensor([0.05, 0.5, 1.0]).repeat(1000)
    torch.manual_seed(0)
    lower = term.teacher_level(level, {INTERVAL: torch.randn(3000)})
    assert (lower >= 0).all()
    gap = (level - lower).reshape(1000, 3)
    assert gap.max() <= 0.2
    assert gap[:, 1:].mean().item() == pytest.approx(0.1, abs=0.005)
    assert gap[:, 1:].std().item() == pytest.approx(0.2 / 12**0.5, abs=0.005)


@pytest.mark.parametrize(
    ("options", "epoch", "expected"),
    [
        ({}, 0, 0.2),
        ({}, 149, 0.2),
        ({}, 649, 2 * 0.1**1.5),
        ({}, 1149, 0.02),
        ({"similarity": "cosine"}, 1149, 0.5),
        ({"similarity": "cosine", "weight": 0.1}, 0, 0.1),
    ],
)
def test_its_weight_follows_the_published_schedule(
    options: dict[str, Any], epoch: int, expected: float
) -> None:
    term = SelfAlignment.model_validate({"kind": "sra", **options})
    assert term.weight * term.share(epoch * 5004) == pytest.approx(expected)


def test_the_weight_of_each_step_is_that_of_the_schedule(trainable: Callable[..., Config]) -> None:
    falling = (TERM, "train.align.1.constant=2", "train.align.1.decay=2")
    config = trainable(*falling)
    trained(config)
    for step, line in enumerate(log_values(config)):
        weight = 0.2 * 0.1 ** (max(0, step - 2) / 2)
        parts = line["denoising"] + 0.5 * line["alignment/efficientnet-lite0"]
        assert line["loss"] == pytest.approx(parts + weight * line["sra"], rel=1e-5)


def test_the_teacher_is_the_moving_average_itself(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    real = Step.__call__

    def watched(step: Step, *arguments: Any) -> Any:
        run = step._run
        assert run.teacher is not None
        assert len(run.teacher.blocks) == 3
        held = dict(run.teacher.named_parameters())
        measured = real(step, *arguments)
        average = run.averages["ema"].tensors
        seen.append(all(torch.equal(p, average[name]) for name, p in held.items()))
        own = dict(run.model.named_parameters())
        name = "x_embedder.proj.weight"
        seen.append(not torch.equal(own[name], held[name]))
        return measured

    monkeypatch.setattr(Step, "__call__", watched)
    config = trainable(TERM)
    trained(config)
    assert seen == [True] * 8
    assert set(newest(config).weights("ema")) == set(newest(config).weights("model"))


def test_a_run_without_a_teacher_has_none(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Any] = []
    real = Step._taught

    def watched(step: Step, *arguments: Any) -> Any:
        teachers.append(step._run.teacher)
        return real(step, *arguments)

    monkeypatch.setattr(Step, "_taught", watched)
    trained(trainable(TERM, "train.align.1.until=2"))
    assert [teacher is None for teacher in teachers] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("train.model=DiT-XS/2",)], ids=["sit", "dit"])
def test_training_lowers_the_loss_and_is_resumed_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    more = (TERM, "train.learning_rate=3e-3", *settings)
    assert_falls(trained_in_parts(trainable, tmp_path, *more, parts=(8, 20)), "sra")


@pytest.mark.parametrize("layout", [None, Layout.SIT_NO_SIGMA])
def test_exported_files_have_no_head_and_can_be_started_from(
    trainable: Callable[..., Config], tmp_path: Path, layout: Layout | None
) -> None:
    config = trainable(TERM, 'train.align.2={kind = "dispersive", recipe = "torch"}')
    trained(config)
    path = tmp_path / "exported.safetensors"
    told = export(config.train.run, ExportOptions(path, layout=layout))
    assert not any(name.startswith("ap_head") for name in load_file(path))
    if layout is None:
        assert "--encoder-depth=2 " in told.loaded_by
    which = [] if layout is None else [f"train.init_layout={layout}"]
    started = trainable(TERM, f"train.init_from={path}", f"train.run={tmp_path / 'other'}", *which)
    trained(started)
    assert any(name.startswith("ap_heads.0.") for name in newest(started).weights("ema"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.align.1.teacher_depth=9",), r"\.teacher_depth: SiT-XS/2 has 4 blocks, got 9"),
        (("train.align.1.depth=4",), r"\.teacher_depth: the teacher's block 3 comes before"),
        (("train.align.1.interval=1.5",), r"\.interval: .*or equal to 1"),
        (("train.align.1.similarity=l2",), r"train\.align\.1\.similarity"),
    ],
)
def test_what_does_not_fit_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(TERM, *settings)
