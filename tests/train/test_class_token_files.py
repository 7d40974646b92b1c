"""Files of REG's code, as runs start from them, samples are drawn and runs exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE
from reference import Described, training, with_projectors
from runs import CPU
from safetensors.torch import save_file
from solving import guided, solved
from torch import Tensor
from torch.testing import assert_close
from weights import State, a_model, assert_equal, fresh, saved, started

from stages.model.sizes import MODELS, Model, Size
from stages.model.streams import packed, unpacked
from stages.model.transformer import Transformer
from stages.model.transformer_config import config_named
from stages.sample.sampled_weights import SampledWeights, SampleOptions, find_weights
from stages.sample.sampler import make_sampled
from stages.train.train_settings import TrainSettings
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import WeightsError

# The golden model: its class token has as many features as the projector's targets.
CONFIG = replace(BASE, class_features=24)
DESCRIBED = with_projectors(CONFIG, 32, (24,))
ENTRY = r"entry of kind 'class-token' in \[\[train\.align\]\]"


@pytest.fixture
def state(methods: Any) -> State:
    found: State = methods.below("reg.model.")
    return found


def without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def assert_published(model: Transformer, methods: Any) -> None:
    inputs = (methods["reg.model_input"], methods["reg.in.t"], methods["reg.in.y"])
    output = model(*inputs, class_token=methods["reg.class_input"])
    assert_close(output.prediction, methods["reg.prediction"], rtol=1e-5, atol=1e-6)
    assert_close(output.class_prediction, methods["reg.class_prediction"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [None, Layout.REPA])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_starts_from_a_file_of_reg_and_predicts_as_published(
    layout: Layout | None, suffix: str, state: State, methods: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(training(state), path)
    model = fresh(DESCRIBED)
    start_from(path, "ema", model, CPU, layout)
    assert_equal(model.state_dict(), state)
    assert_published(model, methods)


def test_a_file_without_projectors_is_known_by_its_class_token(
    state: State, methods: Any, tmp_path: Path
) -> None:
    save_file(without(state, "projectors."), tmp_path / "w.safetensors")
    assert_published(started(tmp_path / "w.safetensors", CONFIG), methods)
    for layout in (Layout.SIT, Layout.SIT_NO_SIGMA):
        with pytest.raises(WeightsError, match="has a class token, as only REG's files do"):
            start_from(tmp_path / "w.safetensors", "ema", fresh(CONFIG), CPU, layout)


def test_the_place_of_the_class_token_is_a_row_of_zeros_in_front(state: State) -> None:
    ours = DESCRIBED.make().pos_embed
    assert ours.shape == state["pos_embed"].shape == (1, 17, 32)
    assert not ours[:, 0].any()
    assert_close(ours, state["pos_embed"], rtol=0, atol=1e-6)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], SampledWeights]:
    """What `sample --official` draws from, from the content of a file."""
    monkeypatch.setitem(MODELS, "SiT-golden/2", Model("SiT", Size(2, 32, 4), 2))

    def load(content: Any) -> SampledWeights:
        torch.save(content, tmp_path / "official.pt")
        options = SampleOptions(official=tmp_path / "official.pt")
        return find_weights(options, TrainSettings(run=tmp_path, model="SiT-golden/2"))

    return load


@pytest.mark.parametrize("has_projectors", [True, False])
@pytest.mark.parametrize(("solver", "name"), [("euler-maruyama", "sde"), ("euler", "euler")])
def test_images_of_reg_s_files_are_those_of_its_sampler(
    solver: str,
    name: str,
    has_projectors: bool,
    state: State,
    methods: Any,
    official: Callable[[Any], SampledWeights],
) -> None:
    found = official(training(state if has_projectors else without(state, "projectors.")))
    assert (found.config, found.layout) == (CONFIG, Layout.REPA)
    # It was trained with an encoder, but does not say with which.
    assert found.aligned_with is None
    model = make_sampled(found.config, found.load(), CPU.device)
    golden = methods.below("reg.sampler.")

    def noise(draw: int) -> Tensor:
        return packed(golden[f"noise.{draw}"], golden[f"class_noise.{draw}"]).double()

    field = guided(
        model, golden["y"], guidance=2.5, class_guidance=2.0, guidance_interval=(0.2, 0.7)
    )
    start = packed(golden["latents"], golden["class_latents"])
    parts = unpacked(solved(solver, field, start, 6, noise=noise), model.config)
    for part, key in zip(parts, (f"{name}.interval", f"{name}.interval.class"), strict=True):
        assert_close(part, golden[key].double(), rtol=1e-4, atol=1e-4)


TOKEN = {"class_features": 24}


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            {},
            TOKEN,
            f"there no class token, here a class token of 24 features. Leave out the {ENTRY}",
        ),
        (
            TOKEN,
            {},
            rf"there a class token of 24 features, here no class token. Set an {ENTRY}, with an "
            "encoder of 24 features",
        ),
        (
            TOKEN,
            {"class_features": 40},
            "there a class token of 24 features, here a class token of 40 features. Set .* 24 feat",
        ),
        (
            {**TOKEN, "side": 16},
            TOKEN,
            r"there latents of side 16 \(128 px .*, here latents of side 8 .*not resampled",
        ),
    ],
)
def test_weights_with_another_class_token_are_refused_with_what_to_set(
    there: dict[str, Any], here: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "w.safetensors", a_model(**there))
    with pytest.raises(WeightsError, match=message):
        started(path, a_model(**here))


@pytest.mark.parametrize(
    ("missing", "changed", "message"),
    [
        ("final_layer.linear_cls.weight", {}, "final_layer.linear_cls.weight is missing"),
        ("wg_norm.bias", {}, "wg_norm.bias is missing"),
        ("cls_projectors2.weight", {}, "there no class token, here a class token"),
        (
            "final_layer.linear_cls.weight",
            {"final_layer.linear_cls.weight": torch.ones(40, 32)},
            r"final_layer.linear_cls.weight is \[40, 32\], expected \[24, 32\]",
        ),
        (
            "pos_embed",
            {"pos_embed": torch.ones(1, 16, 32)},
            "there latents of side 7.74597 .*, here latents of side 8",
        ),
    ],
)
def test_a_file_that_lacks_a_part_of_the_class_token_is_refused(
    missing: str, changed: State, message: str, state: State, tmp_path: Path
) -> None:
    save_file({**without(state, missing), **changed}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        started(tmp_path / "w.safetensors", DESCRIBED)


COUNTS = {"B": 139_028_496, "L": 467_533_328, "XL": 685_017_360}


@pytest.mark.parametrize("size", COUNTS)
def test_models_have_as_many_parameters_as_published(size: str) -> None:
    config = config_named(
        f"SiT-{size}/2", side=32, channels=4, classes=1000, has_null_class=True, class_features=768
    )
    described: Described = with_projectors(config, 2048, (768,))
    with torch.device("meta"):
        model = described.make()
    assert sum(tensor.numel() for tensor in model.parameters()) == COUNTS[size]
    projectors = sum(tensor.numel() for tensor in model.projectors.parameters())
    expected = {"B": 7_344_896, "L": 7_869_184, "XL": 8_131_328}
    assert projectors == expected[size]
