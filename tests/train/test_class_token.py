"""REG: a class token that is diffused along, against tensors of the published code."""

from typing import Any

import pytest
import torch
from methods import BASE, assert_gradients
from stepping import Stepped, settings_of, stepped
from torch.testing import assert_close

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
