import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import golden_dit, golden_model
from torch.testing import assert_close

from stages.model.interpolants import INTERPOLANTS, interpolate, lognormal_time
from stages.placement import Placement
from stages.train.batches import Batch
from stages.train.cached_data import LatentScaling
from stages.train.losses import TrainingLoss
from stages.train.objectives import OBJECTIVES
from stages.train.optim import Average, make_optimiser
from stages.train.precision import make_scaler
from stages.train.randomness import Draws
from stages.train.step import Step
from stages.train.train_settings import TrainSettings

CPU = Placement(torch.device("cpu"))


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


def golden_loss(path: str) -> TrainingLoss:
    settings = TrainSettings(run=Path("run"), interpolant=path)
    return TrainingLoss(settings, ("one", "two"), LatentScaling(0.18215, 0.0), null_class=10)


def golden_batch(sit_repa: Any, time: Any, noise: Any) -> tuple[Batch, Draws]:
    """The golden batch, and the golden posterior draw."""
    tokens = [sit_repa[f"in.target_tokens.{i}"] for i in range(2)]
    batch = Batch(sit_repa["in.moments"], sit_repa["in.y"], tokens)
    return batch, Draws(sit_repa["in.posterior_noise"], noise, time, sit_repa["in.drop"].bool())


@pytest.mark.parametrize("path", INTERPOLANTS)
def test_losses_and_gradients_are_those_of_the_published_code(sit_repa: Any, path: str) -> None:
    model = golden_model(sit_repa)
    batch = golden_batch(sit_repa, sit_repa["in.t"], sit_repa["in.noise"])
    losses = golden_loss(path)(model, *batch)
    denoising, *alignment = losses.terms
    assert_close(denoising, sit_repa[f"{path}.denoising_loss"], rtol=1e-5, atol=0)
    aligned = torch.stack(alignment).mean()
    assert_close(aligned, sit_repa[f"{path}.projection_loss"].squeeze(), rtol=1e-5, atol=1e-7)
    losses.total.backward()
    assert_gradients(model, sit_repa.below(f"{path}.grad."))


def test_each_encoder_has_a_weight_in_the_mean_of_their_losses(sit_repa: Any) -> None:
    settings = TrainSettings(run=Path("run"), weight=0.7, encoder_weights={"one": 3.0})
    loss = TrainingLoss(settings, ("one", "two"), LatentScaling(0.18215, 0.0), null_class=10)
    batch = golden_batch(sit_repa, sit_repa["in.t"], sit_repa["in.noise"])
    losses = loss(golden_model(sit_repa), *batch)
    denoising, one, two = losses.terms.mean(dim=1)
    assert_close(losses.total, denoising + 0.7 * (3 * one + two) / 2)
    assert loss.terms == ("denoising", "alignment/one", "alignment/two")


def golden_run(sit_repa: Any, settings: TrainSettings) -> Any:
    """A run at its first step, with the golden weights."""
    model = golden_model(sit_repa)
    return SimpleNamespace(
        model=model,
        network=model,
        average=Average(model, settings.ema_decay),
        optimiser=make_optimiser(model, settings),
        scaler=make_scaler("float32", CPU.device),
        step=0,
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_five_steps_of_training_are_those_of_the_published_code(
    sit_repa: Any, micro_batches: int
) -> None:
    settings = TrainSettings(run=Path("run"), compute={"micro_batches": micro_batches})
    run = golden_run(sit_repa, settings)
    step = Step(settings, run, golden_loss("linear"), CPU)
    for number in range(5):
        time, noise = sit_repa[f"train.t.{number}"], sit_repa[f"train.noise.{number}"]
        measured = step(*golden_batch(sit_repa, time, noise))
        assert_close(measured.loss, sit_repa["train.loss"][number], rtol=1e-5, atol=1e-6)
        assert_close(measured.gradient_norm, sit_repa["train.grad_norm"][number], rtol=1e-4, atol=0)
    for name, expected in sit_repa.below("train.final.").items():
        assert_close(run.model.state_dict()[name], expected, rtol=1e-5, atol=2e-6, msg=name)
    for name, expected in sit_repa.below("train.ema.").items():
        assert_close(run.average.tensors[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_the_variational_loss_of_dit_is_that_of_the_published_code(dit: Any) -> None:
    settings = TrainSettings(run=Path("run"), model="DiT-B/2")
    model, objective = golden_dit(dit), OBJECTIVES["DiT"](settings)
    # It is not trained, but its gradient was kept.
    model.pos_embed.requires_grad_()
    noisy, losses = objective.pose(dit["in.x"], dit["in.noise"], dit["in.t"])
    assert_close(noisy, dit["x_t"], rtol=1e-5, atol=1e-6)
    predicted, _ = model(noisy, dit["in.t"], dit["in.y"])
    assert_close(predicted, dit["output"], rtol=1e-5, atol=1e-6)
    squared_error, bound = losses(predicted)
    assert_close(squared_error, dit["loss.mse"], rtol=1e-5, atol=0)
    assert_close(bound, dit["loss.vb"], rtol=1e-5, atol=1e-7)
    total = squared_error + bound
    assert_close(total, dit["loss.total"], rtol=1e-5, atol=0)
    total.mean().backward()
    assert_gradients(model, dit.below("grad."))


def assert_gradients(model: torch.nn.Module, expected: dict[str, Any]) -> None:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, name


def test_the_loss_of_an_image_is_its_mean_squared_error() -> None:
    noise = torch.stack([torch.full((4, 3, 3), 2.0), torch.zeros(4, 3, 3)])
    objective = OBJECTIVES["SiT"](TrainSettings(run=Path("run")))
    _, losses = objective.pose(torch.zeros(2, 4, 3, 3), noise, torch.full((2,), 0.5))
    assert losses(torch.zeros(2, 4, 3, 3))[0].tolist() == [4, 0]


def test_latents_are_drawn_from_the_posterior_shifted_and_scaled() -> None:
    moments = torch.tensor([2.0, 0.5])[None, :, None, None].half()
    latent = LatentScaling(scale=3.0, shift=1.0).sample(moments, torch.full((1, 1, 1, 1), 2.0))
    assert latent.item() == pytest.approx((2 + 0.5 * 2 - 1) * 3)
