import math
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import golden_model
from torch.testing import assert_close

from stages.train.alignment import ALIGNMENTS, negative_cosine
from stages.train.batches import Batch, LatentScaling
from stages.train.losses import Losses, Objective
from stages.train.objectives import INTERPOLANTS, interpolate, lognormal_time, velocity_loss
from stages.train.optim import make_average, make_optimiser, update_average
from stages.train.randomness import Draws
from stages.train.settings import TrainSettings


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_the_ends_of_a_path_are_data_and_noise(interpolant: str) -> None:
    clean, noise = torch.randn(2, 3, 4, 5, 5)
    start, _ = interpolate(interpolant, clean, noise, torch.zeros(3))
    end, _ = interpolate(interpolant, clean, noise, torch.ones(3))
    assert_close(start, clean)
    assert_close(end, noise)


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_the_velocity_is_the_derivative_of_the_path(interpolant: str) -> None:
    clean, noise = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)
    time = torch.tensor([0.3], dtype=torch.float64)
    before, velocity = interpolate(interpolant, clean, noise, time)
    after, _ = interpolate(interpolant, clean, noise, time + 1e-6)
    assert_close((after - before) / 1e-6, velocity, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("interpolant", "ratio"),
    [("linear", lambda t: t / (1 - t)), ("cosine", lambda t: math.tan(t * math.pi / 2))],
)
def test_lognormal_times_have_that_noise_to_signal_ratio(interpolant: str, ratio: Any) -> None:
    time = lognormal_time(interpolant, torch.tensor([0.7], dtype=torch.float64))
    assert ratio(time.item()) == pytest.approx(math.exp(0.7))


@pytest.mark.parametrize("align", ALIGNMENTS.values())
def test_alignment_ignores_the_length_of_tokens(align: Any) -> None:
    projected, tokens = torch.randn(2, 3, 4, 8)
    assert_close(align(projected, tokens), align(3 * projected, 0.1 * tokens))


def test_the_cosine_is_taken_in_float32() -> None:
    tokens = torch.full((1, 1, 8), 3e4, dtype=torch.float16)
    assert negative_cosine(tokens, tokens).item() == pytest.approx(-1)


def golden_losses(sit_repa: Any, model: Any, path: str, time: Any, noise: Any) -> Losses:
    """The losses of the golden batch, at the golden posterior draw."""
    settings = TrainSettings(run=Path("run"), interpolant=path)
    batch = Batch(
        sit_repa["in.moments"],
        sit_repa["in.y"],
        [sit_repa[f"in.target_tokens.{i}"] for i in range(2)],
    )
    draws = Draws(sit_repa["in.posterior_noise"], noise, time, sit_repa["in.drop"].bool())
    objective = Objective(settings, LatentScaling(0.18215, 0.0), null_class=10)
    return objective(model, batch, draws)


@pytest.mark.parametrize("path", INTERPOLANTS)
def test_losses_and_gradients_are_those_of_the_published_code(sit_repa: Any, path: str) -> None:
    model = golden_model(sit_repa)
    loss = golden_losses(sit_repa, model, path, sit_repa["in.t"], sit_repa["in.noise"])
    assert_close(loss.denoising, sit_repa[f"{path}.denoising_loss"], rtol=1e-5, atol=0)
    alignment = torch.stack(loss.alignment).mean()
    assert_close(alignment, sit_repa[f"{path}.projection_loss"].squeeze(), rtol=1e-5, atol=1e-7)
    loss.total.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    expected = sit_repa.below(f"{path}.grad.")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, name


def test_five_steps_of_training_are_those_of_the_published_code(sit_repa: Any) -> None:
    model = golden_model(sit_repa)
    average, optimiser = make_average(model), make_optimiser(model, 1e-4)
    for step in range(5):
        time, noise = sit_repa[f"train.t.{step}"], sit_repa[f"train.noise.{step}"]
        loss = golden_losses(sit_repa, model, "linear", time, noise)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        update_average(average, model, 0.9999)
        assert_close(loss.total.detach(), sit_repa["train.loss"][step], rtol=1e-5, atol=1e-6)
        assert_close(norm, sit_repa["train.grad_norm"][step], rtol=1e-4, atol=0)
    for name, expected in sit_repa.below("train.final.").items():
        assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=2e-6, msg=name)
    for name, expected in sit_repa.below("train.ema.").items():
        assert_close(average.state_dict()[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_the_loss_of_an_image_is_its_mean_squared_error() -> None:
    predicted = torch.zeros(2, 4, 3, 3)
    velocity = torch.stack([torch.full((4, 3, 3), 2.0), torch.zeros(4, 3, 3)])
    assert velocity_loss(predicted, velocity).tolist() == [4, 0]


def test_latents_are_drawn_from_the_posterior_shifted_and_scaled() -> None:
    moments = torch.tensor([2.0, 0.5])[None, :, None, None].half()
    latent = LatentScaling(scale=3.0, shift=1.0).sample(moments, torch.full((1, 1, 1, 1), 2.0))
    assert latent.item() == pytest.approx((2 + 0.5 * 2 - 1) * 3)
