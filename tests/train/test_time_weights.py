"""VA-REPA: alignment weighted by time, against the published code and from its formulas."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import ALIGNMENTS, aligned, make
from runs import assert_falls, trained_in_parts
from torch.testing import assert_close

from pipeline.commands.config import config
from pipeline.config import Config, ConfigError
from stages.train.terms.time_weights import TIME_WEIGHTS, Decreasing, Uniform

KINDS = [name for name in TIME_WEIGHTS.classes if name != "uniform"]


def weights_of(kind: str, **options: Any) -> Decreasing:
    found = TIME_WEIGHTS.classes[kind](kind=kind, **options)
    assert isinstance(found, Decreasing)
    return found


def by_formula(kind: str, t: float, tau: float, k: float) -> float:
    def ratio(time: float) -> float:
        return ((1 - time) / time) ** 2

    return {
        "sigmoid": lambda: 1 / (1 + math.exp(-k * (tau - t))),
        "hard": lambda: float(t < tau),
        "cosine": lambda: (1 + math.cos(math.pi * t / tau)) / 2 if t < tau else 0.0,
        "snr": lambda: ratio(t) / (ratio(t) + ratio(tau)),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_loss_and_gradient_are_the_published_ones(methods: Any, kind: str) -> None:
    golden = methods.below("va_repa.")
    level = golden["in.t"]
    weights = weights_of(kind).weights(level)
    assert_close(weights, golden[f"{kind}.weights"], rtol=1e-5, atol=1e-7)
    projected = golden["in.projected"].clone().requires_grad_()
    tokens = golden["in.target_tokens"]
    loss = aligned(make("repa", time_weight={"kind": kind}), projected, tokens, level).mean()
    assert_close(loss, golden[f"{kind}.loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, projected)
    expected = golden[f"{kind}.grad_projected"]
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_formula(kind: str) -> None:
    times = [0.01, 0.3, 0.5, 0.7, 0.99]
    options: dict[str, Any] = {"tau": 0.5, **({"k": 7.0} if kind == "sigmoid" else {})}
    found = weights_of(kind, **options).weights(torch.tensor(times))
    expected = [by_formula(kind, time, 0.5, 7.0) for time in times]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    ends = weights_of(kind).weights(torch.tensor([0.0, 1.0]))
    assert ends.tolist() == pytest.approx([1, 0], abs=3e-3)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_every_alignment_has_the_mean_over_its_weights(name: str) -> None:
    projected, tokens = torch.randn(2, 5, 4, 8)
    level = torch.tensor([0.1, 0.6, 0.65, 0.8, 0.9])
    plain = aligned(make(name), projected, tokens)
    found = aligned(make(name, time_weight={"kind": "sigmoid"}), projected, tokens, level)
    weights = weights_of("sigmoid").weights(level)
    assert_close(found.mean(), (weights * plain).sum() / weights.sum())


def test_each_process_has_a_mean_over_weights_of_its_own() -> None:
    """Two of them minimise the mean of theirs, which is not that of the whole batch."""
    projected, tokens = torch.randn(2, 4, 4, 8)
    level, term = torch.tensor([0.1, 0.9, 0.65, 0.75]), make("repa", time_weight={"kind": "cosine"})
    parts = zip(*(one.split(2) for one in (projected, tokens, level)), strict=True)
    found = torch.stack([aligned(term, *part).mean() for part in parts]).mean()
    plain = aligned(make("repa"), projected, tokens)
    # In each half one image has a weight.
    assert_close(found, (plain[0] + plain[2]) / 2)
    assert not torch.allclose(found, aligned(term, projected, tokens, level).mean())


def test_where_nothing_counts_the_loss_is_nothing_and_so_is_its_gradient() -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    projected.requires_grad_()
    level = torch.full((3,), 0.9)
    losses = aligned(make("repa", time_weight={"kind": "hard"}), projected, tokens, level)
    losses.mean().backward()
    assert not losses.any()
    assert projected.grad is not None
    assert not projected.grad.any()


def test_without_weights_nothing_is_computed() -> None:
    losses = torch.randn(3)
    assert Uniform().weighted(losses, torch.rand(3)) is losses
    assert not make("repa").compares_images
    assert make("repa", time_weight={"kind": "hard"}).compares_images


def setting(**weight: Any) -> str:
    pairs = (f"{key} = {json.dumps(value)}" for key, value in weight.items())
    return f"train.align.0.time_weight={{{', '.join(pairs)}}}"


@pytest.mark.slow
def test_a_weighted_run_lowers_its_loss_and_resumes_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    more = (setting(kind="sigmoid", tau=0.6, k=10.0), "train.batch_size=21")
    whole = trained_in_parts(trainable, tmp_path, *more, parts=(4, 8))
    assert_falls(whole, "alignment/efficientnet-lite0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (setting(kind="hard", k=2.0),),
            "train.align.0.time_weight.k: only the kind sigmoid takes this, not 'hard'",
        ),
        ((setting(kind="soft"),), "train.align.0.time_weight.kind: "),
        (
            (setting(kind="snr", tau=1.0),),
            "train.align.0.time_weight.tau: input should be less than 1",
        ),
        (
            (setting(kind="snr"), "train.interpolant=cosine"),
            "train.align.0.time_weight: 'snr' is that of the linear path, not of the cosine",
        ),
        (
            (setting(kind="snr"), "train.model=DiT-XS/2"),
            "train.align.0.time_weight: 'snr' is that of the linear path, not of the schedule of",
        ),
        (
            (setting(kind="hard"), "train.compute.micro_batches=2"),
            "train.compute.micro_batches: 'repa' needs the whole batch at once (train.align.0)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        trainable(*settings)
    assert message in str(caught.value)


def test_the_whole_configuration_has_it_in_a_line(built: Path) -> None:
    path = built / "pipeline.toml"
    written = config(path)
    assert 'time_weight = {kind = "uniform"}' in written
    written = config(path, [setting(kind="sigmoid", k=5.0)])
    assert 'time_weight = {kind = "sigmoid", k = 5.0}' in written
    assert '{kind = "sigmoid", tau = number above 0 and' in " ".join(written.split("\n# "))
