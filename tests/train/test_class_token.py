"""REG: a class token that is diffused along, against tensors of the published code."""

import math
from typing import Any

import pytest
import torch
from methods import BASE, assert_gradients
from solving import guided, solved
from stepping import Stepped, settings_of, stepped
from torch.testing import assert_close

from stages.model.streams import packed, unpacked

ALIGN = (
    {"kind": "class-token", "encoder": "e"},
    {"kind": "repa", "encoder": "e", "depth": 1, "projector_width": 32, "class_token": True},
)


def step_of(methods: Any, **train: Any) -> Stepped:
    return stepped(
        settings_of(ALIGN, **train),
        BASE,
        methods.below("reg.model."),
        {
            "clean": methods["reg.in.x"],
            "labels": methods["reg.in.y"],
            "e/vector": methods["reg.in.class_token"],
            "e/directions": methods["reg.in.target_tokens"],
        },
        {
            "time": methods["reg.in.t"],
            "noise": methods["reg.in.noise"],
            "class_token/noise": methods["reg.in.class_noise"],
        },
    )


@pytest.fixture(scope="module")
def reg(methods: Any) -> Stepped:
    return step_of(methods)


def test_losses_are_the_published_ones(methods: Any, reg: Stepped) -> None:
    losses = reg.losses
    assert_close(losses["denoising"], methods["reg.denoising_loss"], rtol=1e-5, atol=0)
    assert_close(losses["class-token"], methods["reg.class_denoising_loss"], rtol=1e-5, atol=0)
    expected = methods["reg.projection_loss"]
    assert_close(losses["alignment/e"].mean(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_published_ones(methods: Any, reg: Stepped) -> None:
    assert_gradients(reg.model, methods.below("reg.grad."))


def test_predictions_are_the_published_ones(methods: Any, reg: Stepped) -> None:
    inputs = (methods["reg.model_input"], methods["reg.in.t"], methods["reg.in.y"])
    output = reg.model(*inputs, [1], methods["reg.class_input"])
    assert_close(output.prediction, methods["reg.prediction"], rtol=1e-5, atol=1e-6)
    assert_close(output.class_prediction, methods["reg.class_prediction"], rtol=1e-5, atol=1e-6)
    projected = reg.model.projectors[0](output.hidden[1])
    assert_close(projected, methods["reg.projected"], rtol=1e-5, atol=1e-6)
    assert torch.equal(output.patches[1], output.hidden[1][:, 1:])


def posed(methods: Any, path: str, clean: str, noise: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is noisy and its velocity, image by image, from the formulas of the paths."""
    noisy, velocity = [], []
    for x, e, t in zip(*(methods[f"reg.in.{key}"] for key in (clean, noise, "t")), strict=True):
        if path == "linear":
            noisy.append((1 - t) * x + t * e)
            velocity.append(e - x)
        else:
            angle = math.pi / 2 * t
            noisy.append(angle.cos() * x + angle.sin() * e)
            velocity.append(math.pi / 2 * (angle.cos() * e - angle.sin() * x))
    return torch.stack(noisy), torch.stack(velocity)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_step_is_what_its_formulas_say(methods: Any, path: str) -> None:
    reg = step_of(methods, interpolant=path)
    noisy, velocity = posed(methods, path, "x", "noise")
    noisy_class, class_velocity = posed(methods, path, "class_token", "class_noise")
    times, labels = methods["reg.in.t"], methods["reg.in.y"]
    model = step_of(methods, interpolant=path).model
    model.zero_grad()
    output = model(noisy, times, labels, [1], noisy_class)
    denoising = (output.prediction - velocity).square().mean((1, 2, 3))
    # One number for each image: the published code mixes images on the cosine path.
    class_denoising = (output.class_prediction - class_velocity).square().mean(1)
    assert class_velocity.shape == noisy_class.shape == (2, 24)
    projected = model.projectors[0](output.hidden[1])
    targets = torch.cat(
        [methods["reg.in.class_token"][:, None], methods["reg.in.target_tokens"]], dim=1
    )
    lengths = projected.norm(dim=2) * targets.norm(dim=2)
    alignment = -((projected * targets).sum(dim=2) / lengths).mean(dim=1)
    for name, expected in (
        ("denoising", denoising),
        ("class-token", class_denoising),
        ("alignment/e", alignment),
    ):
        assert_close(reg.losses[name], expected, rtol=1e-5, atol=1e-6)
    (denoising.mean() + 0.03 * class_denoising.mean() + 0.5 * alignment.mean()).backward()
    assert_gradients(reg.model, {n: p.grad for n, p in model.named_parameters() if p.requires_grad})


GUIDANCE = {
    "plain": {},
    "cfg": {"guidance": 1.8, "class_guidance": 1.8},
    "cfg_latents_only": {"guidance": 1.8},
    "interval": {"guidance": 2.5, "class_guidance": 2.0, "guidance_interval": (0.2, 0.7)},
}


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize(("solver", "name"), [("euler-maruyama", "sde"), ("euler", "euler")])
def test_samplers_are_the_published_ones(
    methods: Any, reg: Stepped, solver: str, name: str, guidance: str
) -> None:
    golden = methods.below("reg.sampler.")
    start = packed(golden["latents"], golden["class_latents"])

    def noise(draw: int) -> torch.Tensor:
        return packed(golden[f"noise.{draw}"], golden[f"class_noise.{draw}"]).double()

    field = guided(reg.model, golden["y"], **GUIDANCE[guidance])
    found = unpacked(solved(solver, field, start, steps=6, noise=noise), reg.model.config)
    for part, key in zip(found, (f"{name}.{guidance}", f"{name}.{guidance}.class"), strict=True):
        assert_close(part, golden[key].double(), rtol=1e-4, atol=1e-4)
