import numpy as np
import pytest
import torch
from runs import CPU

from stages.train.meter import Measured, Meter

NAMES = ("denoising", "alignment/one")


def measured(terms: torch.Tensor, level: torch.Tensor, norm: float = 1.0) -> Measured:
    return Measured(terms, level, terms.mean(dim=1).sum(), torch.tensor(norm))


def filled(steps: int, images: int = 6) -> tuple[Meter, torch.Tensor, torch.Tensor]:
    meter = Meter(NAMES, CPU)
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(steps, 2, images, generator=generator)
    level = torch.rand(steps, images, generator=generator)
    for step in range(steps):
        meter.add(measured(terms[step], level[step], norm=float(step)))
    return meter, terms, level


def test_values_are_means_over_all_images_of_the_interval() -> None:
    meter, terms, _ = filled(5)
    values = meter.reduce().values()
    assert values["denoising"] == pytest.approx(terms[:, 0].mean().item(), rel=1e-6)
    assert values["alignment/one"] == pytest.approx(terms[:, 1].mean().item(), rel=1e-6)
    assert values["loss"] == pytest.approx(terms.mean(dim=2).sum(dim=1).mean().item(), rel=1e-6)
    assert values["gradient_norm"] == 2
    assert values["skipped"] == 0


def test_losses_are_told_apart_by_level_of_noise() -> None:
    meter, terms, level = filled(40)
    values = meter.reduce().values()
    for number, span in enumerate(("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")):
        is_in = (level >= number / 4) & (level < (number + 1) / 4)
        for name, term in zip(NAMES, terms.unbind(1), strict=True):
            assert values[f"{name}@{span}"] == pytest.approx(term[is_in].mean().item(), rel=1e-5)


def test_pure_noise_belongs_to_the_last_level_and_empty_levels_are_left_out() -> None:
    meter = Meter(NAMES, CPU)
    meter.add(measured(torch.ones(2, 3), torch.ones(3)))
    assert [name for name in meter.reduce().values() if "@" in name] == [
        "denoising@0.75-1.00",
        "alignment/one@0.75-1.00",
    ]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_steps_that_are_not_finite_are_counted_and_left_out(bad: float) -> None:
    meter, terms, _ = filled(2)
    spoilt = torch.ones(2, 6).index_fill(1, torch.tensor(3), bad)
    meter.add(measured(spoilt, torch.rand(6)))
    meter.add(measured(torch.ones(2, 6), torch.rand(6), norm=bad))
    interval = meter.reduce()
    assert interval.nonfinite(gradients=True) == [2, 3]
    assert interval.nonfinite(gradients=False) == [2]
    values = interval.values()
    assert values["skipped"] == 2
    assert values["denoising"] == pytest.approx(terms[:, 0].mean().item(), rel=1e-6)


def test_an_interval_without_a_finite_step_has_no_means() -> None:
    meter = Meter(NAMES, CPU)
    meter.add(measured(torch.full((2, 3), torch.nan), torch.rand(3)))
    assert meter.reduce().values() == {"skipped": 1}


def test_what_was_saved_and_restored_counts_like_what_was_not() -> None:
    meter, terms, level = filled(4)
    half = Meter(NAMES, CPU)
    for step in range(2):
        half.add(measured(terms[step], level[step], norm=float(step)))
    half.reduce()
    resumed = Meter(NAMES, CPU)
    resumed.restore(half.state)
    for step in range(2, 4):
        resumed.add(measured(terms[step], level[step], norm=float(step)))
    np.testing.assert_array_equal(resumed.reduce().rows, meter.reduce().rows)
    resumed.clear()
    assert len(resumed.reduce().rows) == len(resumed.state) == 0
