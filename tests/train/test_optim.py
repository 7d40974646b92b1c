"""The step of the optimiser: clipping before it, or as it reads the gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import log_values, newest, trained
from torch import nn

from pipeline.config import Config
from stages.train import optim

CLIPS = {"clipped": 0.05, "as-they-are": 1e6, "unlimited": float("inf")}


@pytest.mark.parametrize("limit", CLIPS.values(), ids=CLIPS)
def test_clipping_in_the_optimiser_is_clipping_before_it(
    trainable: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
) -> None:
    clipped = f"train.gradient_clip={limit}"
    apart = trainable(clipped, f"train.run={tmp_path / 'apart'}")
    trained(apart)
    monkeypatch.setattr(optim, "DIVIDING", {"cpu"})
    # Were it called, gradients would be clipped twice.
    monkeypatch.delattr(nn.utils, "clip_grads_with_norm_")
    within = trainable(clipped)
    trained(within)
    for line, expected in zip(log_values(within), log_values(apart), strict=True):
        assert line == pytest.approx(expected, rel=1e-6)
    weights = newest(apart).weights("model")
    for name, tensor in newest(within).weights("model").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-7)
        assert limit == CLIPS["clipped"] or torch.equal(tensor, weights[name])


@pytest.mark.parametrize("devices", [set(), {"cpu"}], ids=["apart", "within"])
def test_weights_follow_the_gradient_of_the_largest_norm_and_none_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, devices: set[str]
) -> None:
    monkeypatch.setattr(optim, "DIVIDING", devices)
    weight = nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.AdamW(
        [weight], lr=1.0, betas=(0.0, 0.0), eps=1.0, weight_decay=0, fused=True
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(*gradient: float) -> None:
        weight.grad = torch.tensor(gradient)
        optim.update_weights(optimiser, scaler, optim.gradient_norm(optimiser), limit=0.5)

    # Of norm 5, scaled to 0.5: without averages a weight moves by g / (|g| + 1).
    step(3.0, -4.0)
    expected = torch.tensor([-0.3 / 1.3, 0.4 / 1.4])
    torch.testing.assert_close(weight.detach(), expected)
    for bad in (torch.inf, torch.nan):
        step(bad, 1.0)
        torch.testing.assert_close(weight.detach(), expected)
