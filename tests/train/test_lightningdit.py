"""LightningDiT: layers, loss, times and files, against tensors of the published code.

In its code time 0 is noise and 1 is data, and velocities lead from noise to data.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE, LAYERS, assert_gradients
from reference import training
from runs import CPU
from safetensors.torch import load_file
from solving import guided, solved
from stepping import Stepped, settings_of, stepped
from torch import Tensor
from torch.testing import assert_close
from weights import assert_equal, export, run_with

from stages.model.attention import rotate
from stages.model.interpolants import shifted
from stages.model.sizes import MODELS, Model, Size
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.sample.sampled_weights import SampleOptions, find_weights
from stages.sample.sampler import make_sampled
from stages.train.train_settings import TrainSettings
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import WeightsError, with_time_reversed

# As published, but for the norm of queries and keys.
OPTIONS = {**LAYERS, "value_residual": False}
CONFIG = replace(BASE, **OPTIONS)
# The published code lets the shift move times towards noise, too: 0.3 of its times is 1 / 0.3 here.
SHIFT = 1 / 0.3


def official(methods: Any, *, qk_norm: bool = True) -> Transformer:
    """The model in its own direction of time."""
    state = methods.below("lightning.model.")
    if not qk_norm:
        state = without_qk_norm(state)
    model = Transformer(replace(CONFIG, qk_norm=qk_norm))
    model.load_state_dict(state)
    return model.requires_grad_(False)


def without_qk_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if ".q_norm." not in n and ".k_norm." not in n}


@pytest.fixture
def drawn_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Transformer]:
    """The model that `sample --official` draws with, from the content of a file."""
    monkeypatch.setitem(MODELS, "SiT-golden/2", Model("SiT", Size(2, 32, 4), 2))

    def load(content: Any, layout: Layout | None = Layout.LIGHTNINGDIT) -> Transformer:
        torch.save(content, tmp_path / "official.pt")
        options = SampleOptions(official=tmp_path / "official.pt", layout=layout)
        found = find_weights(options, TrainSettings(run=tmp_path, model="SiT-golden/2"))
        return make_sampled(found.config, found.load(), CPU.device)

    return load


@pytest.mark.parametrize(
    ("qk_norm", "name"), [(True, "prediction"), (False, "prediction_without_qk_norm")]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_published_file_predicts_what_its_code_predicts(
    methods: Any, drawn_with: Callable[..., Transformer], qk_norm: bool, name: str, prefix: str
) -> None:
    state = methods.below("lightning.model.")
    state = state if qk_norm else without_qk_norm(state)
    model = drawn_with(training({prefix + key: tensor for key, tensor in state.items()}))
    assert model.config == replace(CONFIG, qk_norm=qk_norm)
    noisy, time, labels = (methods[f"lightning.{key}"] for key in ("model_input", "in.t", "in.y"))
    expected = methods[f"lightning.{name}"]
    assert_close(-model(noisy, 1 - time, labels).prediction, expected, rtol=1e-5, atol=1e-5)
    same = official(methods, qk_norm=qk_norm)(noisy, time, labels).prediction
    assert_close(same, expected, rtol=1e-5, atol=1e-5)


def test_a_file_without_projectors_has_to_be_said_to_be_its(
    methods: Any, drawn_with: Callable[..., Transformer]
) -> None:
    state = methods.below("lightning.model.")
    with pytest.raises(WeightsError, match=r"'repa' .time 0 is data. or 'lightningdit' .time 0 is"):
        drawn_with(state, None)
    with pytest.raises(WeightsError, match=r"not of the layout 'sit-no-sigma': .* SiT has not"):
        drawn_with(state, Layout.SIT_NO_SIGMA)


def test_a_block_and_its_rotary_positions_are_the_published_ones(methods: Any) -> None:
    model = official(methods)
    rotation = Transformer(CONFIG).feat_rope(0)
    turned = rotate(methods["lightning.rope.in"], rotation)
    assert_close(turned, methods["lightning.rope.out"], rtol=1e-5, atol=1e-6)
    inputs = methods["lightning.block.in.tokens"], methods["lightning.block.in.condition"]
    tokens, _ = model.blocks[0](*inputs, rotation)
    assert_close(tokens, methods["lightning.block.output"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def lightning(methods: Any) -> Stepped:
    return stepped(
        settings_of([{"kind": "direction"}], times="lognormal", **OPTIONS),
        BASE,
        with_time_reversed(methods.below("lightning.model.")),
        {"clean": methods["lightning.in.x"], "labels": methods["lightning.in.y"]},
        {"time": 1 - methods["lightning.in.t"], "noise": methods["lightning.in.noise"]},
    )


def test_losses_are_the_published_ones(methods: Any, lightning: Stepped) -> None:
    denoising, direction = methods["lightning.denoising_loss"], methods["lightning.direction_loss"]
    assert_close(lightning.losses["denoising"], denoising, rtol=1e-5, atol=0)
    assert_close(lightning.losses["direction"], direction, rtol=1e-5, atol=0)
    assert_close(lightning.total, denoising.mean() + direction.mean(), rtol=1e-5, atol=0)


def test_gradients_are_the_published_ones(methods: Any, lightning: Stepped) -> None:
    # What turns time round is a reflection of weights, by which gradients change likewise.
    assert_gradients(lightning.model, with_time_reversed(methods.below("lightning.grad.")))


def test_the_direction_of_a_velocity_is_its_cosine_over_channels_at_each_place(
    methods: Any, lightning: Stepped
) -> None:
    noisy, time, labels = (methods[f"lightning.{key}"] for key in ("model_input", "in.t", "in.y"))
    ours = -lightning.model(noisy, 1 - time, labels).prediction
    target = methods["lightning.in.x"] - methods["lightning.in.noise"]
    lengths = ours.norm(dim=1) * target.norm(dim=1)
    expected = (1 - (ours * target).sum(1) / lengths).mean((1, 2))
    assert_close(lightning.losses["direction"], expected, rtol=1e-5, atol=0)


def test_guidance_of_the_first_channels_is_the_published_one(
    methods: Any, drawn_with: Callable[..., Transformer]
) -> None:
    noisy, labels = methods["lightning.model_input"].double(), methods["lightning.guided_y"]
    model = drawn_with(training(methods.below("lightning.model.")))
    field = guided(model, labels, guidance=1.8, guided_channels=3)
    expected = methods["lightning.guided_first_three_channels_w1.8"].double()
    assert_close(-field(noisy, 0.6, 0.6), expected, rtol=1e-5, atol=1e-5)
    # Below some time its code does not guide: above one minus it here.
    start = 0.1
    field = guided(
        model, labels, guidance=1.8, guided_channels=3, guidance_interval=(0.0, 1 - start)
    )
    assert_close(-field(noisy, 0.6, 0.6), expected, rtol=1e-5, atol=1e-5)
    plain = guided(model, labels)
    assert torch.equal(field(noisy, 0.95, 0.95), plain(noisy, 0.95, 0.95))


def test_shifted_times_are_the_published_ones(methods: Any) -> None:
    even = 1 - methods["lightning.shift.grid"]
    expected = 1 - methods["lightning.shift.grid_0.3"]
    assert_close(shifted(even, SHIFT), expected, rtol=1e-5, atol=1e-6)
    assert_close(shifted(even, 1.0), even, rtol=0, atol=0)


def test_euler_steps_on_the_shifted_grid_are_those_of_its_sampler(
    methods: Any, drawn_with: Callable[..., Transformer]
) -> None:
    grid, labels = methods["lightning.shift.grid_0.3"].double(), methods["lightning.guided_y"]
    start, theirs = methods["lightning.in.noise"], official(methods)
    state = start.double()
    for time, after in pairwise(grid):
        each = time.float().expand(len(labels))
        state = state + (after - time) * theirs(state.float(), each, labels).prediction.double()
    field = guided(drawn_with(training(methods.below("lightning.model."))), labels)
    found = solved("euler", field, start, steps=len(grid) - 1, shift=SHIFT)
    assert_close(found, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("SiT-B/1", 32, 130_556_192),
        ("SiT-B/2", 4, 130_531_600),
        ("SiT-L/2", 4, 458_120_176),
        ("SiT-XL/1", 32, 675_256_736),
        ("SiT-XL/2", 4, 675_219_856),
    ],
)
def test_every_published_size_has_its_number_of_parameters(
    name: str, channels: int, parameters: int
) -> None:
    config = config_named(
        name,
        side=16 * MODELS[name].patch,
        channels=channels,
        classes=1000,
        has_null_class=True,
        norm="rms-affine",
        mlp="swiglu",
        rotary=True,
    )
    with torch.device("meta"):
        model = Transformer(config)
    # The tables of rotary positions are buffers there.
    counted = (p for name, p in model.named_parameters() if not name.startswith("feat_rope."))
    assert sum(parameter.numel() for parameter in counted) == parameters


def test_its_weights_are_exported_as_they_were(
    methods: Any, built: Path, runs: Path, tmp_path: Path
) -> None:
    theirs = methods.below("lightning.model.")
    torch.save(training(theirs), tmp_path / "theirs.pt")
    model = Transformer(CONFIG)
    start_from(tmp_path / "theirs.pt", "ema", model, CPU, Layout.LIGHTNINGDIT)
    run = run_with(tmp_path / "run", runs / "plain", CONFIG, model.state_dict())
    said = export(built, run, tmp_path / "w.safetensors", "--layout", "lightningdit")
    assert "use_rmsnorm: true, use_swiglu: true, use_rope: true, use_qknorm: true" in said
    found = load_file(tmp_path / "w.safetensors")
    turned = "t_embedder.mlp.0.weight"
    assert_close(found.pop(turned), theirs.pop(turned), rtol=1e-6, atol=1e-6)
    assert_equal(found, theirs)


@pytest.mark.parametrize(
    ("options", "layout", "message"),
    [
        ({"mlp": "swiglu"}, "sit-no-sigma", 'sit-no-sigma has no train.mlp = "swiglu"'),
        ({"norm": "rms"}, "lightningdit", 'lightningdit has no train.norm = "rms"'),
        ({"value_residual": True}, "lightningdit", "has no train.value_residual = true"),
    ],
)
def test_layers_that_a_code_does_not_have_are_not_exported_for_it(
    options: dict[str, Any], layout: str, message: str, built: Path, runs: Path, tmp_path: Path
) -> None:
    model = Transformer(replace(BASE, **options))
    run = run_with(tmp_path / "run", runs / "plain", model.config, model.state_dict())
    output = export(built, run, tmp_path / "w.pt", "--layout", layout, status=1)
    assert message in output
    assert not (tmp_path / "w.pt").exists()
    assert "w.pt: ema of step" in export(built, run, tmp_path / "w.pt", "--layout", "repa")
