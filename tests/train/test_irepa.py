"""iREPA: a convolutional projector and spatially normalised targets, against the published code."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE, assert_gradients
from reference import Described
from runs import CPU, assert_falls, newest, trained, trained_in_parts
from safetensors.torch import load_file, save_file
from stepping import Stepped, settings_of, stepped
from torch import Tensor
from torch.testing import assert_close
from weights import assert_equal, export, fresh

from pipeline.config import Config, ConfigError
from stages.model.blocks import MLPProjector
from stages.model.projectors import ConvProjection, MLPProjection
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.train.terms.irepa import IRepa, spatially_normalised
from stages.weights.fitting import start_from

# The golden model has two encoders, over which its loss is a mean.
ALIGN = tuple(
    {"kind": "irepa", "encoder": f"e{number}", "depth": 1, "weight": 0.5} for number in range(2)
)
IREPA = ("train.align.0.kind=irepa", "train.align.0.weight=1.0")


def golden_step(methods: Any, **options: Any) -> Stepped:
    return stepped(
        settings_of([{**entry, **options} for entry in ALIGN]),
        BASE,
        methods.below("irepa.model."),
        {
            "clean": methods["irepa.in.x"],
            "labels": methods["irepa.in.y"],
            **{f"e{n}/tokens": methods[f"irepa.in.target_tokens.{n}"] for n in range(2)},
        },
        {"time": methods["irepa.in.t"], "noise": methods["irepa.in.noise"]},
    )


@pytest.fixture(scope="module")
def golden(methods: Any) -> Stepped:
    return golden_step(methods)


def projection_loss(found: Stepped) -> Tensor:
    return torch.stack([found.losses[f"alignment/e{number}"] for number in range(2)]).mean()


def test_losses_are_the_published_ones(methods: Any, golden: Stepped) -> None:
    expected = methods["irepa.denoising_loss"]
    assert_close(golden.losses["denoising"], expected, rtol=1e-5, atol=0)
    assert_close(projection_loss(golden), methods["irepa.projection_loss"], rtol=1e-5, atol=1e-6)
    whole = projection_loss(golden_step(methods, alpha=1.0))
    assert_close(whole, methods["irepa.projection_loss_alpha_1"], rtol=1e-5, atol=1e-6)


def test_gradients_are_the_published_ones(methods: Any, golden: Stepped) -> None:
    assert_gradients(golden.model, methods.below("irepa.grad."))


def test_projected_tokens_and_predictions_are_the_published_ones(
    methods: Any, golden: Stepped
) -> None:
    time = methods["irepa.in.t"][:, None, None, None]
    noisy = (1 - time) * methods["irepa.in.x"] + time * methods["irepa.in.noise"]
    output = golden.model(noisy, methods["irepa.in.t"], methods["irepa.in.y"], [1])
    assert_close(output.prediction, methods["irepa.prediction"], rtol=1e-5, atol=1e-6)
    for number, projector in enumerate(golden.model.projectors):
        projected = projector(output.hidden[1])
        assert_close(projected, methods[f"irepa.projected.{number}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("number", [0, 1])
def test_targets_are_the_published_ones(methods: Any, alpha: float, number: int) -> None:
    found = spatially_normalised(methods[f"irepa.in.target_tokens.{number}"], alpha)
    expected = methods[f"irepa.target_normalised.alpha_{alpha}.{number}"]
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_targets_are_those_of_the_formula_feature_by_feature() -> None:
    tokens = torch.randn(2, 9, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2
    found = spatially_normalised(tokens, 0.6)
    for image in range(2):
        for feature in range(3):
            values = tokens[image, :, feature].tolist()
            mean = sum(values) / 9
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 8)
            expected = [(value - 0.6 * mean) / (deviation + 1e-6) for value in values]
            assert found[image, :, feature].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_projector_is_a_convolution_over_the_grid_with_zeros_around(kernel: int) -> None:
    projector = ConvProjection(5, 4, kernel)
    weight, bias = projector.projection_layer.weight, projector.projection_layer.bias
    assert bias is not None
    tokens = torch.randn(2, 9, 5)
    expected = bias.repeat(2, 9, 1)
    reach = kernel // 2
    for place in range(9):
        for other in range(9):
            down, right = other // 3 - place // 3, other % 3 - place % 3
            if max(abs(down), abs(right)) <= reach:
                part = weight[:, :, down + reach, right + reach]
                expected[:, place] += tokens[:, other] @ part.T
    assert_close(projector(tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_convolution_starts_as_pytorch_has_it_and_layers_by_xavier() -> None:
    torch.manual_seed(0)
    convolution, layers = ConvProjection(32, 24), MLPProjection(32, 64, 24)
    before = [parameter.clone() for parameter in convolution.parameters()]
    lists = {"projectors": [convolution, layers]}
    Transformer(BASE, make_lists=lambda: lists)
    for parameter, start in zip(convolution.parameters(), before, strict=True):
        assert torch.equal(parameter, start)
        limit = 1 / math.sqrt(9 * 32)
        assert 0.9 * limit < parameter.abs().max() <= limit
    assert not any(layers.projection_layer[number].bias.any() for number in (0, 2, 4))


@pytest.mark.parametrize(
    ("name", "projector", "whole"),
    [
        ("SiT-B/2", 5_309_184, 135_809_296),
        ("SiT-L/2", 7_078_656, 465_165_072),
        ("SiT-XL/2", 7_963_392, 683_074_576),
    ],
)
def test_a_model_has_as_many_parameters_as_the_published_one(
    name: str, projector: int, whole: int
) -> None:
    config = config_named(name, side=32, channels=4, classes=1000, has_null_class=True)
    with torch.device("meta"):
        made = ConvProjection(config.width, 768, 3)
        model = Transformer(config, make_lists=lambda: {"projectors": [made]})
    assert sum(parameter.numel() for parameter in made.parameters()) == projector
    assert sum(parameter.numel() for parameter in model.parameters()) == whole


def test_its_defaults_are_the_paper_s_and_the_code_s() -> None:
    term = IRepa(encoder="e")
    assert (term.weight, term.alpha, term.kernel, term.projector) == (1.0, 0.6, None, "conv")


def described(*kernels: int | None, features: int = 24) -> Described:
    return Described(
        BASE, lambda: {"projectors": [ConvProjection(32, features, kernel) for kernel in kernels]}
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_published_file_loads_whatever_its_kernel(kernel: int, tmp_path: Path) -> None:
    there, model = fresh(described(kernel)), fresh(described(None))
    torch.save({"ema": there.state_dict(), "steps": 4}, tmp_path / "w.pt")
    start_from(tmp_path / "w.pt", "ema", model, CPU)
    assert_equal(model.state_dict(), there.state_dict())
    tokens = torch.randn(2, 16, 32)
    assert torch.equal(model.projectors[0](tokens), there.projectors[0](tokens))
    # So does a checkpoint of a run that began so.
    resumed = fresh(described(None))
    resumed.load_state_dict(there.state_dict())
    assert_equal(resumed.state_dict(), there.state_dict())


@pytest.mark.parametrize("here", [described(3), described(None, features=12)])
def test_a_projector_of_another_kernel_or_width_starts_anew(
    here: Described, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(fresh(described(1)).state_dict(), tmp_path / "w.safetensors")
    model = fresh(here)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start_from(tmp_path / "w.safetensors", "ema", model, CPU)
    for name, tensor in model.state_dict().items():
        if name.startswith("projectors."):
            assert torch.equal(tensor, before[name])
    assert "projectors that start anew, as none there has their shape: projectors.0" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("long", [True, False])
def test_layers_load_under_the_names_of_either_code(*, long: bool, tmp_path: Path) -> None:
    kinds = MLPProjection, MLPProjector
    there, here = (
        fresh(Described(BASE, lambda kind=kind: {"projectors": [kind(32, 16, 24)]}))  # type: ignore[misc]
        for kind in (kinds if long else reversed(kinds))
    )
    save_file(there.state_dict(), tmp_path / "w.safetensors")
    start_from(tmp_path / "w.safetensors", "ema", here, CPU)
    tokens = torch.randn(2, 16, 32)
    assert torch.equal(here.projectors[0](tokens), there.projectors[0](tokens))
    long_names = {f"projectors.0.projection_layer.{layer}.weight" for layer in (0, 2, 4)}
    assert (long_names <= there.state_dict().keys()) == long


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("train.align.0.projector=mlp",)], ids=["conv", "mlp"])
def test_a_run_lowers_its_loss_resumes_bit_for_bit_and_is_exported(
    trainable: Callable[..., Config], built: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    more = (*IREPA, *settings, "train.batch_size=21")
    whole = trained_in_parts(trainable, tmp_path, *more, parts=(4, 8))
    assert_falls(whole, "alignment/efficientnet-lite0")
    output = export(built, whole.train.run, tmp_path / "w.safetensors")
    assert output.endswith("for iREPA's samplers, which pass over projectors\n")
    assert_equal(load_file(tmp_path / "w.safetensors"), newest(whole).weights("ema"))


def test_a_run_takes_the_kernel_of_what_it_starts_from_and_keeps_it(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    first = trainable(*IREPA, "train.align.0.kernel=1", f"train.run={tmp_path / 'first'}")
    trained(first)
    more = (*IREPA, f"train.init_from={first.train.run}")
    for steps in (2, 4):
        trained(trainable(*more, f"train.steps={steps}"))
    name = "projectors.0.projection_layer.weight"
    assert newest(trainable(*more)).weights("ema")[name].shape == (112, 128, 1, 1)


def test_beside_a_diffused_class_token_it_sees_patches_alone_and_says_so() -> None:
    assert not IRepa(encoder="e").sees_class_token
    with pytest.raises(ValueError, match="class_token: 'irepa' is undefined for it"):
        settings_of([{"kind": "irepa", "encoder": "e", "class_token": True}])


def test_other_kernels_and_alphas_are_refused(trainable: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        trainable(*IREPA, "train.align.0.kernel=2", "train.align.0.alpha=1.5")
    assert "train.align.0.kernel: input should be 1 or 3" in str(caught.value)
    assert "train.align.0.alpha: input should be less than or equal to 1" in str(caught.value)
