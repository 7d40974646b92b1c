"""The dispersive loss, against tensors of the published code and from its formula."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_falls, trained_in_parts
from stepping import settings_of
from torch.testing import assert_close

from pipeline.config import Config, ConfigError
from stages.train.terms.dispersive import dispersion

TERM = 'train.align.1={kind = "dispersive"}'


def test_loss_and_gradient_are_the_published_ones(methods: Any) -> None:
    golden = methods.below("disperse.")
    hidden = golden["in.hidden"].clone().requires_grad_()
    loss = dispersion(hidden, 1.0)
    assert_close(loss, golden["loss"], rtol=1e-5, atol=1e-6)
    assert_close(dispersion(hidden, 0.5), golden["loss_tau_0.5"], rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, hidden)
    expected = golden["grad_hidden"]
    assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_loss_and_gradient_are_those_of_the_formula_wherever_the_states_lie(offset: float) -> None:
    hidden = (torch.randn(6, 5, 8) + offset).requires_grad_()
    exact = hidden.flatten(1).double()
    terms = [torch.exp(-(one - other).square().mean() / 0.3) for one in exact for other in exact]
    expected = torch.log(sum(terms) / len(terms))  # type: ignore[arg-type]
    loss = dispersion(hidden, 0.3)
    assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    found, right = (torch.autograd.grad(one, hidden)[0] for one in (loss, expected))
    assert_close(found, right, rtol=1e-3, atol=1e-5 * right.abs().max().item())


def test_it_lies_between_the_logarithm_of_one_over_the_images_and_nothing() -> None:
    apart = 100 * torch.eye(8)[:, None]
    assert dispersion(apart, 1.0).item() == pytest.approx(-math.log(8))
    assert dispersion(torch.ones(8, 3, 2), 1.0).item() == 0


@pytest.mark.parametrize(
    ("given", "model", "expected"),
    [
        ({}, "SiT-B/2", (0.5, 0.5, 3)),
        ({}, "SiT-XL/2", (0.5, 0.5, 7)),
        ({"recipe": "torch"}, "DiT-L/2", (0.25, 1.0, 24)),
        ({"recipe": "torch", "depth": 2, "weight": 0.1}, "SiT-B/2", (0.1, 1.0, 2)),
    ],
)
def test_a_recipe_decides_what_is_not_given(
    given: dict[str, Any], model: str, expected: tuple[float, float, int]
) -> None:
    (term,) = settings_of([{"kind": "dispersive", **given}], model=model).align
    assert (term.weight, term.temperature, *term.depths) == expected  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("train.model=DiT-XS/2",)], ids=["sit", "dit"])
def test_training_disperses_and_is_resumed_bit_for_bit(
    trainable: Callable[..., Config], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    more = (TERM, "train.learning_rate=3e-3", *settings)
    assert_falls(trained_in_parts(trainable, tmp_path, *more, parts=(8, 20)), "dispersive")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.compute.micro_batches=2",), r"micro_batches: 'dispersive' needs the whole batch"),
        (
            ("train.batch_size=1",),
            r"train\.batch_size: 'dispersive' compares .* 1 here and needs 2",
        ),
        (("train.align.1.depth=9",), r"train\.align\.1\.depth: SiT-XS/2 has 4 blocks, got 9"),
        (("train.align.1.recipe=tpu",), r"train\.align\.1\.recipe"),
    ],
)
def test_what_does_not_fit_is_refused(
    trainable: Callable[..., Config], settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(TERM, *settings)
