"""Denoising losses by level of noise, of images that may be held out."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.commands import app
from stages.analyze.analysis_options import StateOptions
from stages.analyze.losses import LevelLosses, measure_losses
from stages.analyze.subject import Subject, open_subject
from stages.model.diffusion import diffuse
from stages.sample.sampler import make_sampled
from stages.train.randomness import Stream, seed_for

CPU = torch.device("cpu")


@pytest.fixture
def subject(built: Path, runs: Path) -> Callable[..., Subject]:
    """A run that has been trained, sit, plain or dit, with its cache."""

    def opened(run: str, **options: Any) -> Subject:
        options = {"cache": built / "tiny.zarr", "levels": (0.3,), **options}
        return open_subject(runs / run, (), StateOptions(**options))

    return opened


def normal(row: int, draw: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed_for(0, Stream.ANALYSIS, row, draw))
    return torch.randn(4, 8, 8, generator=source)


@pytest.mark.parametrize("family", ["sit", "dit"])
@pytest.mark.parametrize("is_conditional", [False, True])
def test_losses_are_those_of_a_forward_pass_by_hand(
    subject: Callable[..., Subject], family: str, is_conditional: bool
) -> None:
    opened = subject(family, is_conditional=is_conditional, batch_size=5)
    (found,) = measure_losses(opened, CPU).levels
    assert found.losses.shape == (21,)
    model = make_sampled(opened.found.model, opened.found.weights("ema"), CPU)
    for place in (0, 7, 20):
        row = int(opened.rows[place])
        moments = torch.from_numpy(opened.latents.read("moments", [row])).float()
        clean, noise = (moments[:, :4] + moments[:, 4:] * normal(row, 0)) * 0.5, normal(row, 1)
        time = torch.tensor([300 if family == "dit" else 0.3])
        is_dit = family == "dit"
        noisy = diffuse(clean, noise, time) if is_dit else 0.7 * clean + 0.3 * noise
        target = noise if is_dit else noise - clean
        label = int(opened.cache.rows.label[row]) if is_conditional else 3
        with torch.inference_mode():
            predicted = model(noisy, time, torch.tensor([label])).prediction[:, :4]
        expected = float((predicted - target).square().mean())
        assert found.losses[place] == pytest.approx(expected, rel=1e-4)


def test_the_error_is_that_of_the_mean() -> None:
    one = LevelLosses(0.5, np.array([1.0, 2.0, 3.0, 4.0]))
    assert (one.mean, one.error) == (2.5, pytest.approx(np.sqrt(5 / 3) / 2))


def test_losses_are_written_by_level(built: Path, runs: Path, tmp_path: Path) -> None:
    common = ("--cache", str(built / "tiny.zarr"), "--out", str(tmp_path), "--levels", "0.8,0.2")
    result = CliRunner().invoke(app, ["analyze", "losses", str(runs / "sit"), *common])
    assert result.exit_code == 0, result.output
    assert re.search(r"0\.8 +\d\.\d{4} ± 0\.\d{4}", result.output)
    with (tmp_path / "losses-step-00000002.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["noise"], row["images"]) for row in rows] == [("0.2", "21"), ("0.8", "21")]
    assert (tmp_path / "losses-step-00000002.png").stat().st_size > 1000
