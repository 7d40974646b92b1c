"""Files of the published codes, as they are drawn from and exported, against golden tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import golden_dit, golden_model, golden_sit, predict, training
from runs import CPU
from safetensors.torch import load_file, save_file
from solving import GUIDANCE, guided, solved
from torch import Tensor
from weights import assert_equal, export, run_with

from stages.model.sizes import MODELS, Model, Size
from stages.model.transformer import Transformer
from stages.sample.sampled_weights import SampleOptions, find_weights
from stages.sample.sampler import make_sampled
from stages.train.train_settings import TrainSettings
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import without_projectors

# Of the models in the file of SiT's own code, the layout, and whether a file tells it.
OF_SIT = {"sigma": (Layout.SIT, True), "no_sigma": (Layout.SIT_NO_SIGMA, False)}


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Transformer]:
    """The model that `sample --official` draws with, from the content of a file."""
    for family in ("SiT", "DiT"):
        monkeypatch.setitem(MODELS, f"{family}-golden/2", Model(family, Size(3, 48, 4), 2))

    def load(content: Any, family: str = "SiT", layout: Layout | None = None) -> Transformer:
        torch.save(content, tmp_path / "official.pt")
        options = SampleOptions(official=tmp_path / "official.pt", layout=layout)
        found = find_weights(options, TrainSettings(run=tmp_path, model=f"{family}-golden/2"))
        return make_sampled(found.config, found.load(), CPU.device)

    return load


@pytest.mark.parametrize("mode", GUIDANCE)
@pytest.mark.parametrize(
    ("solver", "name"), [("euler", "euler"), ("heun", "heun"), ("euler-maruyama", "sde")]
)
@pytest.mark.parametrize("has_projectors", [True, False])
def test_images_of_repa_s_files_are_those_of_its_sampler(
    solver: str,
    name: str,
    mode: str,
    has_projectors: bool,
    sit_repa: Any,
    official: Callable[..., Transformer],
) -> None:
    state = sit_repa.below("model.")
    if has_projectors:
        model = official(training(state))
    else:
        model = official(without_projectors(state), layout=Layout.REPA)
    guidance, interval = GUIDANCE[mode]
    field = guided(model, sit_repa["in.y"], guidance=guidance, guidance_interval=interval)
    noise: Callable[[int], Tensor] = lambda k: sit_repa[f"sampler.noise.{k}"]  # noqa: E731
    found = solved(solver, field, sit_repa["sampler.latents"], noise=noise)
    expected = sit_repa[f"sampler.linear.{name}.{mode}"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("solver", "name"), [("ddpm", "sampler.10"), ("ddim", "sampler.ddim10")])
@pytest.mark.parametrize("layout", [None, Layout.DIT])
def test_images_of_dit_s_files_are_those_of_its_sampler(
    solver: str,
    name: str,
    layout: Layout | None,
    dit: Any,
    official: Callable[..., Transformer],
) -> None:
    field = guided(official(dit.below("model."), "DiT", layout), dit["in.y"])
    noise: Callable[[int], Tensor] = lambda k: dit[f"{name}.noise.{k}"]  # noqa: E731
    found = solved(solver, field, dit[f"{name}.latents"], 10, noise=noise)
    torch.testing.assert_close(found, dit[f"{name}.sample"].double(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", OF_SIT)
def test_images_of_sit_s_files_are_those_of_its_sampler(
    name: str, sit_official: Any, official: Callable[..., Transformer]
) -> None:
    layout, is_told = OF_SIT[name]
    content = training(sit_official.below(f"{name}.model."))
    model = official(content, layout=None if is_told else layout)
    start, labels = sit_official["in.latents"], sit_official["in.y"]
    found = solved("euler", guided(model, labels), start)
    expected = sit_official[f"{name}.sampler.euler"].double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    field = guided(model, labels[:2], guidance=1.8, guided_channels=3)
    expected = sit_official[f"{name}.sampler.euler_cfg_1.8"].double()
    torch.testing.assert_close(solved("euler", field, start[:2]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_precision_are_drawn_from_in_float32(
    dtype: torch.dtype, sit_official: Any, sit_repa: Any, official: Callable[..., Transformer]
) -> None:
    for golden, prefix in ((sit_official, "sigma.model."), (sit_repa, "model.")):
        state = {name: tensor.to(dtype) for name, tensor in golden.below(prefix).items()}
        found = official(state).state_dict()
        expected = official({name: tensor.float() for name, tensor in state.items()}).state_dict()
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert_equal(found, expected)


@pytest.mark.parametrize("layout", [Layout.REPA, Layout.DIT])
def test_the_published_weights_are_exported_as_they_are(
    layout: Layout, sit_repa: Any, dit: Any, built: Path, runs: Path, tmp_path: Path
) -> None:
    kinds = {
        Layout.REPA: ("sit", golden_model(sit_repa), sit_repa),
        Layout.DIT: ("dit", golden_dit(dit), dit),
    }
    kind, model, golden = kinds[layout]
    run = run_with(tmp_path / "run", runs / kind, model.config, model.state_dict())
    export(built, run, tmp_path / "w.safetensors", "--layout", layout)
    assert_equal(load_file(tmp_path / "w.safetensors"), golden.below("model."))


@pytest.mark.parametrize("name", OF_SIT)
def test_sit_s_own_weights_are_exported_as_they_were(
    name: str, sit_official: Any, built: Path, runs: Path, tmp_path: Path
) -> None:
    theirs, config = sit_official.below(f"{name}.model."), golden_sit(sit_official)
    layout, _ = OF_SIT[name]
    save_file(theirs, tmp_path / "theirs.safetensors")
    model = Transformer(config)
    start_from(tmp_path / "theirs.safetensors", "ema", model, CPU, layout)
    run = run_with(tmp_path / "run", runs / "plain", config, model.state_dict())
    export(built, run, tmp_path / "w.safetensors", "--layout", layout)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == theirs.keys()
    # What SiT computes and drops is not kept.
    dropped = torch.arange(32).reshape(4, 2, 4)[:, 1].flatten() if name == "sigma" else []
    for key, tensor in theirs.items():
        expected = tensor.clone()
        if key.startswith("final_layer.linear"):
            expected[dropped] = 0
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-6)
    inputs = sit_official["in.x"], sit_official["in.t"], sit_official["in.y"]
    velocity = predict(found, *inputs, config.heads, drops_half=name == "sigma")
    expected = sit_official[f"{name}.velocity"]
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(velocity, expected, rtol=0, atol=tolerance)
