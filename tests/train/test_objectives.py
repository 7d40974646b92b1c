import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import golden_dit, golden_model
from stepping import fresh_run
from torch.testing import assert_close

from stages.latents import LatentScaling
from stages.model.interpolants import INTERPOLANTS, interpolate, lognormal_time
from stages.model.sizes import LATENTS
from stages.placement import Placement
from stages.train.batches import Named
from stages.train.step import Step
from stages.train.terms.denoising import NoiseAndVariance, Velocity
from stages.train.terms.run_terms import RunTerms
from stages.train.terms.seen import Seen, Streamed
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


# Both encoders of the golden model share the published weight of 0.5.
ALIGN = tuple(
    {"kind": "repa", "encoder": name, "weight": 0.25, "depth": 2} for name in ("one", "two")
)


def golden_settings(**changes: Any) -> TrainSettings:
    return TrainSettings(run=Path("run"), **{"align": ALIGN, **changes})


def golden_run(sit_repa: Any, settings: TrainSettings) -> Any:
    """A run at its first step, with the golden weights."""
    return fresh_run(golden_model(sit_repa), settings)


def golden_step(run: Any, settings: TrainSettings) -> Step:
    data: Any = SimpleNamespace(scaling=LatentScaling(0.18215, 0.0), classes=10, captions=None)
    return Step(settings, run, RunTerms.of(settings), data, CPU)


def golden_batch(sit_repa: Any, time: Any, noise: Any) -> tuple[Named, Named]:
    """The golden batch, and the golden posterior draw."""
    tokens = {
        f"{n}/directions": sit_repa[f"in.target_tokens.{i}"] for i, n in enumerate(("one", "two"))
    }
    batch = {"moments": sit_repa["in.moments"], "labels": sit_repa["in.y"], **tokens}
    posterior, dropped = sit_repa["in.posterior_noise"], sit_repa["in.drop"].bool()
    return batch, {"posterior": posterior, "noise": noise, "time": time, "dropped": dropped}


@pytest.mark.parametrize("path", INTERPOLANTS)
def test_losses_and_gradients_are_those_of_the_published_code(sit_repa: Any, path: str) -> None:
    settings = golden_settings(interpolant=path)
    run = golden_run(sit_repa, settings)
    step = golden_step(run, settings)
    losses = step._losses(*golden_batch(sit_repa, sit_repa["in.t"], sit_repa["in.noise"]))
    denoising, *alignment = losses
    assert_close(denoising, sit_repa[f"{path}.denoising_loss"], rtol=1e-5, atol=0)
    aligned = torch.stack(alignment).mean()
    assert_close(aligned, sit_repa[f"{path}.projection_loss"].squeeze(), rtol=1e-5, atol=1e-7)
    step._total(losses).backward()
    assert_gradients(run.model, sit_repa.below(f"{path}.grad."))


def test_each_term_has_a_weight_and_a_name_of_its_own(sit_repa: Any) -> None:
    one, two = ALIGN
    entries = ({**one, "weight": 2.0}, {**two, "weight": 0.3}, {**one, "weight": 0.7})
    settings = golden_settings(align=entries)
    run = golden_run(sit_repa, settings)
    run.modules[3] = run.modules[1]
    step = golden_step(run, settings)
    batch = golden_batch(sit_repa, sit_repa["in.t"], sit_repa["in.noise"])
    losses = step._losses(*batch)
    denoising, first, second, third = losses.mean(dim=1)
    assert_close(step._total(losses), denoising + 2 * first + 0.3 * second + 0.7 * third)
    assert first == third
    names = ("denoising", "alignment/one", "alignment/two", "alignment/one/2")
    assert RunTerms.of(settings).names == names


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_five_steps_of_training_are_those_of_the_published_code(
    sit_repa: Any, micro_batches: int
) -> None:
    settings = golden_settings(compute={"micro_batches": micro_batches})
    run = golden_run(sit_repa, settings)
    step = golden_step(run, settings)
    for number in range(5):
        time, noise = sit_repa[f"train.t.{number}"], sit_repa[f"train.noise.{number}"]
        measured = step(*golden_batch(sit_repa, time, noise))
        assert_close(measured.loss, sit_repa["train.loss"][number], rtol=1e-5, atol=1e-6)
        assert_close(measured.gradient_norm, sit_repa["train.grad_norm"][number], rtol=1e-4, atol=0)
    for name, expected in sit_repa.below("train.final.").items():
        assert_close(run.model.state_dict()[name], expected, rtol=1e-5, atol=2e-6, msg=name)
    for name, expected in sit_repa.below("train.ema.").items():
        assert_close(run.averages["ema"].tensors[name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_the_variational_loss_of_dit_is_that_of_the_published_code(dit: Any) -> None:
    model, objective = golden_dit(dit), NoiseAndVariance()
    # It is not trained, but its gradient was kept.
    model.pos_embed.requires_grad_()
    clean, time = dit["in.x"], dit["in.t"]
    noisy, target = objective.pose(clean, dit["in.noise"], time)
    assert_close(noisy, dit["x_t"], rtol=1e-5, atol=1e-6)
    predicted = model(noisy, dit["in.t"], dit["in.y"]).prediction
    assert_close(predicted, dit["output"], rtol=1e-5, atol=1e-6)
    streams = {LATENTS: Streamed(clean, target, noisy, target, predicted)}
    seen = Seen({}, {}, time, objective.level(time), streams, {})
    squared_error, bound = objective.losses(seen)
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
    objective, clean, time = Velocity(), torch.zeros(2, 4, 3, 3), torch.full((2,), 0.5)
    noisy, target = objective.pose(clean, noise, time)
    streams = {LATENTS: Streamed(clean, noise, noisy, target, torch.zeros_like(noisy))}
    seen = Seen({}, {}, time, time, streams, {})
    assert objective.losses(seen)[0].tolist() == [4, 0]


def test_latents_are_drawn_from_the_posterior_shifted_and_scaled() -> None:
    moments = torch.tensor([2.0, 0.5])[None, :, None, None].half()
    latent = LatentScaling(scale=3.0, shift=1.0).sample(moments, torch.full((1, 1, 1, 1), 2.0))
    assert latent.item() == pytest.approx((2 + 0.5 * 2 - 1) * 3)
