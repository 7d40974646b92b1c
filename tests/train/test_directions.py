"""Files of SiT's own code, in which time runs from noise to data, against its golden tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import golden_model, golden_sit
from runs import CPU, drawn_into, newest_of
from safetensors.torch import save_file
from solving import guided, solved
from weights import State, assert_equal, export, fresh

from pipeline.config import Config
from stages.model.transformer import Transformer
from stages.model.transformer_config import TransformerConfig
from stages.train.loop import train
from stages.train.train_settings import RunError
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import TIMES, WeightsError, with_sigma

# Of the golden file's two models, the layout that each has.
MODELS = {"sigma": Layout.SIT, "no_sigma": Layout.SIT_NO_SIGMA}


@pytest.fixture
def config(sit_official: Any) -> TransformerConfig:
    return golden_sit(sit_official)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def imported(
    name: str, sit_official: Any, config: TransformerConfig, tmp_path: Path
) -> Transformer:
    """A model of this project with the weights of SiT's own file."""
    save_file(sit_official.below(f"{name}.model."), tmp_path / "sit.safetensors")
    model = fresh(config)
    start_from(tmp_path / "sit.safetensors", "ema", model, CPU, MODELS[name])
    return model


def test_sit_s_own_weights_predict_its_velocity_at_the_other_end_of_time(
    name: str, imported: Transformer, sit_official: Any
) -> None:
    inputs = sit_official["in.x"], 1 - sit_official["in.t"], sit_official["in.y"]
    velocity = imported(*inputs).prediction
    expected = sit_official[f"{name}.velocity"]
    torch.testing.assert_close(-velocity, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_their_samples_are_those_of_sit_s_own_sampler(
    name: str, imported: Transformer, sit_official: Any
) -> None:
    start, labels = sit_official["in.latents"], sit_official["in.y"]
    found = solved("euler", guided(imported, labels), start, 8)
    expected = sit_official[f"{name}.sampler.euler"].double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    field = guided(imported, labels[:2], guidance=1.8, guided_channels=3)
    expected = sit_official[f"{name}.sampler.euler_cfg_1.8"].double()
    torch.testing.assert_close(solved("euler", field, start[:2], 8), expected, rtol=0, atol=1e-4)


def files(sit_official: Any, sit_repa: Any) -> dict[str, State]:
    """Files that are and are not SiT's own, which all have the same names."""
    repa = sit_repa.below("model.")
    stripped = {n: t for n, t in repa.items() if not n.startswith("projectors.")}
    return {
        "doubled": sit_official.below("sigma.model."),
        "single": sit_official.below("no_sigma.model."),
        "projectors": repa,
        "stripped": stripped,
        # What version 0.1 of this project exported for SiT.
        "earlier": with_sigma(stripped, 2),
    }


@pytest.mark.parametrize(
    ("file", "layout", "expected"),
    [
        (
            "single",
            None,
            r"does not tell whose code .* 'repa' \(time 0 is data\) or 'sit-no-sigma'",
        ),
        ("stripped", None, "train.init_layout, or --layout"),
        ("single", Layout.SIT, "'sit': .* twice the channels. Expected 'repa' or 'sit-no-sigma'"),
        ("single", Layout.DIT, "not of the layout 'dit': .* Expected 'repa' or 'sit-no-sigma'"),
        ("doubled", Layout.SIT_NO_SIGMA, "its output has twice the channels, .* Expected 'sit' "),
        ("doubled", Layout.DIT, "not of the layout 'dit': .* need a DiT as train.model.*ed 'sit' "),
        ("projectors", Layout.SIT, "it has projectors, as only REPA's files do. Expected 'repa' "),
    ],
)
def test_whose_file_it_is_has_to_be_known(
    file: str,
    layout: Layout | None,
    expected: str,
    sit_official: Any,
    sit_repa: Any,
    config: TransformerConfig,
    tmp_path: Path,
) -> None:
    save_file(files(sit_official, sit_repa)[file], tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=expected):
        start_from(tmp_path / "w.safetensors", "ema", fresh(config), CPU, layout)


def test_files_of_repa_keep_their_direction_with_projectors_or_when_that_is_said(
    sit_official: Any,
    sit_repa: Any,
    config: TransformerConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = golden_model(sit_repa).state_dict()
    trunk = {n: t for n, t in expected.items() if not n.startswith("projectors.")}
    for file, layout in (("projectors", None), ("stripped", Layout.REPA), ("earlier", Layout.REPA)):
        save_file(files(sit_official, sit_repa)[file], tmp_path / "w.safetensors")
        model = fresh(config)
        start_from(tmp_path / "w.safetensors", "ema", model, CPU, layout)
        assert_equal(model.state_dict(), trunk)
        is_doubted = "own code have the layout 'sit'" in capsys.readouterr().err
        assert is_doubted == (file == "earlier")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, r"t_embedder\.mlp\.0\.weight is missing"),
        (torch.ones(48, 128), r"t_embedder\.mlp\.0\.weight is \[48, 128\], expected \[48, 256\]"),
        (torch.ones(48), r"t_embedder\.mlp\.0\.weight is \[48\], expected \[48, 256\]"),
    ],
)
def test_an_embedding_of_times_of_another_width_is_refused_before_it_is_turned(
    tensor: torch.Tensor | None,
    message: str,
    sit_official: Any,
    config: TransformerConfig,
    tmp_path: Path,
) -> None:
    state = sit_official.below("sigma.model.")
    del state[TIMES]
    save_file(state if tensor is None else {**state, TIMES: tensor}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        start_from(tmp_path / "w.safetensors", "ema", fresh(config), CPU)


def test_a_run_of_ours_has_no_other_direction(runs: Path) -> None:
    config = newest_of(runs / "plain").model
    model = fresh(config)
    start_from(runs / "plain", "ema", model, CPU, Layout.REPA)
    assert_equal(model.state_dict(), newest_of(runs / "plain").weights("ema"))
    with pytest.raises(WeightsError, match="it is a checkpoint of this project"):
        start_from(runs / "plain", "ema", fresh(config), CPU, Layout.SIT_NO_SIGMA)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_turned_in_double(
    dtype: torch.dtype, sit_official: Any, config: TransformerConfig, tmp_path: Path
) -> None:
    state = {n: t.to(dtype) for n, t in sit_official.below("sigma.model.").items()}
    models = []
    for number, weights in enumerate((state, {n: t.float() for n, t in state.items()})):
        save_file(weights, tmp_path / f"{number}.safetensors")
        models.append(fresh(config))
        start_from(tmp_path / f"{number}.safetensors", "ema", models[-1], CPU)
    assert_equal(models[0].state_dict(), models[1].state_dict())


def test_published_weights_of_unclear_origin_are_drawn_from_once_that_is_said(
    trainable: Callable[..., Config],
    built: Path,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = trainable("sample.guidance=2.0", "train.align=[]")
    export(built, runs / "plain", tmp_path / "w.pt", "--layout", "sit-no-sigma")
    with pytest.raises(WeightsError, match="does not tell whose code"):
        drawn_into(tmp_path / "x", config, official=tmp_path / "w.pt")
    drawn = drawn_into(
        tmp_path / "x", config, official=tmp_path / "w.pt", layout=Layout.SIT_NO_SIGMA
    )
    manifest = json.loads((drawn.samples.folder / "manifest.json").read_text())
    assert manifest["layout"] == "sit-no-sigma"
    assert "its own code guides the first three" in capsys.readouterr().err


def test_a_run_that_began_before_there_was_a_setting_goes_on(
    trainable: Callable[..., Config], runs: Path
) -> None:
    first = trainable("train.steps=1")
    train(first.train, first.tensors, CPU)
    path = newest_of(first.train.run).folder / "state.json"
    state = json.loads(path.read_text())
    del state["settings"]["init_layout"], state["settings"]["align"][0]["until"]
    path.write_text(json.dumps(state))
    again = trainable("train.steps=2")
    assert train(again.train, again.tensors, CPU).start == 1
    other = trainable("train.steps=3", "train.init_layout=sit", f"train.init_from={runs / 'sit'}")
    with pytest.raises(RunError, match='init_layout: run null, configuration "sit"'):
        train(other.train, other.tensors, CPU)
