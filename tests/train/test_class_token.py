"""REG: a class token that is diffused along, against tensors of the published code."""

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


@pytest.fixture(scope="module")
def reg(methods: Any) -> Stepped:
    return stepped(
        settings_of(ALIGN),
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
