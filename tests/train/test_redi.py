"""ReDi: components of tokens diffused behind the latents, against tensors of the published code.

Its time is 1 at clean data, and its velocity leads there: weights are turned round, as those of
its files are.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import BASE, assert_gradients
from reference import training
from runs import CPU
from solving import guided, solved
from stepping import Stepped, model_of, settings_of, stepped
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from torch.testing import assert_close

from stages.model.sizes import MODELS, Model, Size
from stages.model.transformer import Transformer
from stages.sample.sampled_weights import SampleOptions, find_weights
from stages.sample.sampler import make_sampled
from stages.train.terms.redi import DROPPED, on_grid
from stages.train.train_settings import TrainSettings
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import (
    WeightsError,
    as_redi,
    with_time_reversed,
    without_projectors,
)

REDI = {"kind": "redi", "encoder": "pca"}
REPA = {"kind": "repa", "encoder": "e", "depth": 1, "projector_width": 32}
# A standard normal below the one and above the other is one of a dropped image with drop = 0.5.
KEPT, GONE = 1.0, -1.0


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names and direction of time as those of this project."""
    names = {name: name.replace("projector.", "projectors.0.") for name in state}
    return with_time_reversed({names[name]: tensor for name, tensor in state.items()})


def step_of(methods: Any, *, dropped: tuple[float, float] | None = None, **redi: Any) -> Stepped:
    noise = methods["redi.in.noise"]
    drawn = {} if dropped is None else {DROPPED: torch.tensor(dropped)}
    return stepped(
        settings_of(({**REDI, **redi}, REPA)),
        BASE,
        own_names(methods.below("redi.model.")),
        {
            "clean": methods["redi.in.x"],
            "labels": methods["redi.in.y"],
            "pca/tokens": methods["redi.pca.projected"],
            "e/directions": methods["redi.in.target_tokens"],
        },
        {
            "time": 1 - methods["redi.in.t"],
            "noise": noise[:, :4],
            "components/noise": noise[:, 4:],
            **drawn,
        },
    )


@pytest.fixture(scope="module")
def redi(methods: Any) -> Stepped:
    return step_of(methods)


def test_components_lie_on_the_latents_grid_as_published(methods: Any) -> None:
    found = on_grid(methods["redi.pca.projected"], (8, 8))
    assert_close(found, methods["redi.in.representation"], rtol=1e-5, atol=1e-6)


def test_losses_are_the_published_ones(methods: Any, redi: Stepped) -> None:
    losses = redi.losses
    assert_close(losses["denoising"], methods["redi.latent_loss"], rtol=1e-5, atol=0)
    assert_close(losses["redi"], methods["redi.representation_loss"], rtol=1e-5, atol=0)
    assert_close(losses["denoising"] + losses["redi"], methods["redi.loss"], rtol=1e-5, atol=0)
    expected = methods["redi.projection_loss"]
    assert_close(losses["alignment/e"].mean(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_published_ones(methods: Any, redi: Stepped) -> None:
    # What turns weights round is linear and orthogonal: gradients turn with them.
    assert_gradients(redi.model, own_names(methods.below("redi.grad.")))


def test_predictions_are_the_published_ones(methods: Any, redi: Stepped) -> None:
    inputs = (methods["redi.model_input"], 1 - methods["redi.in.t"], methods["redi.in.y"])
    output = redi.model(*inputs, [1])
    assert_close(output.prediction, -methods["redi.prediction"], rtol=1e-5, atol=1e-5)
    projected = redi.model.projectors[0](output.hidden[1])
    assert_close(projected, methods["redi.projected"], rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_the_formula(methods: Any, redi: Stepped) -> None:
    golden, t = methods, 1 - methods["redi.in.t"][:, None, None, None]
    grid = golden["redi.pca.projected"].reshape(2, 4, 4, 8).permute(0, 3, 1, 2)
    spread = interpolate(grid, (8, 8), mode="bilinear", align_corners=False)
    clean, noise = torch.cat([golden["redi.in.x"], spread], 1), golden["redi.in.noise"]
    noisy = (1 - t) * clean + t * noise
    output = redi.model(noisy, t.flatten(), golden["redi.in.y"], [1])
    error = (output.prediction - (noise - clean)).square()
    tokens = golden["redi.in.target_tokens"]
    aligned = -cosine_similarity(redi.model.projectors[0](output.hidden[1]), tokens, dim=-1).mean()
    total = error[:, :4].mean() + 1.0 * error[:, 4:].mean() + 0.5 * aligned
    assert_close(redi.total, total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropped", [(GONE, GONE), (GONE, KEPT)])
def test_legacy_drops_the_clean_components_of_a_whole_batch(
    methods: Any, dropped: tuple[float, float]
) -> None:
    found = step_of(methods, drop=0.5, drop_mode="legacy", dropped=dropped).losses
    assert_close(found["denoising"], methods["redi.dropped.loss"], rtol=1e-5, atol=0)
    assert found["redi"].tolist() == [0, 0]


def test_legacy_keeps_a_batch_whose_first_image_is_kept(methods: Any, redi: Stepped) -> None:
    found = step_of(methods, drop=0.5, drop_mode="legacy", dropped=(KEPT, GONE)).losses
    assert all(torch.equal(found[name], losses) for name, losses in redi.losses.items())


def test_an_image_that_is_dropped_has_zeros_where_its_noisy_components_were(
    methods: Any, redi: Stepped
) -> None:
    found = step_of(methods, drop=0.5, dropped=(GONE, KEPT))
    inputs = methods["redi.model_input"][:1].clone()
    inputs[:, 4:] = 0
    time, labels = 1 - methods["redi.in.t"][:1], methods["redi.in.y"][:1]
    predicted = found.model(inputs, time, labels).prediction[:, :4]
    target = (methods["redi.in.noise"][:1, :4]) - methods["redi.in.x"][:1]
    assert_close(found.losses["denoising"][:1], (predicted - target).square().mean()[None])
    assert found.losses["redi"][0] == 0
    for name in ("denoising", "redi"):
        assert_close(found.losses[name][1], redi.losses[name][1])


GUIDANCE = {
    "plain": {},
    "cfg_all": {"guidance": 1.8, "guide_components": True},
    "cfg_latents_only": {"guidance": 1.8},
    "representation": {"representation_guidance": 1.5},
}
GUIDED = {
    "all_w1.8": "cfg_all",
    "latents_only_w1.8": "cfg_latents_only",
    "representation_w1.5": "representation",
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_predictions_are_the_published_ones(methods: Any, redi: Stepped, name: str) -> None:
    golden, time = methods.below("redi.sampler."), 1 - float(methods["redi.guided.t"])
    field = guided(redi.model, golden["y"], **GUIDANCE[GUIDED[name]])
    with torch.no_grad():
        found = field(golden["latents"].double(), time, time)
    assert_close(-found.float(), methods[f"redi.guided.{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize(
    ("solver", "name", "steps"), [("euler-maruyama", "sde", 6), ("euler", "euler", 5)]
)
def test_samplers_are_the_published_ones(
    methods: Any, redi: Stepped, solver: str, name: str, steps: int, guidance: str
) -> None:
    golden = methods.below("redi.sampler.")
    draws = "noise" if guidance == "plain" else "noise_guided"
    field = guided(redi.model, golden["y"], **GUIDANCE[guidance])
    found = solved(
        solver,
        field,
        golden["latents"],
        steps=steps,
        noise=lambda draw: golden[f"{draws}.{draw}"].double(),
    )
    assert_close(found.float(), golden[f"{name}.{guidance}"], rtol=1e-4, atol=1e-4)


def test_both_guidances_add_up(methods: Any, redi: Stepped) -> None:
    golden = methods.below("redi.sampler.")
    state, labels = golden["latents"].double(), golden["y"]

    def predicted(**settings: Any) -> Tensor:
        with torch.no_grad():
            return guided(redi.model, labels, **settings)(state, 0.4, 0.4)

    plain, label = predicted(), predicted(guidance=1.8)
    towards = predicted(representation_guidance=1.5)
    both = predicted(guidance=1.8, representation_guidance=1.5)
    assert_close(both, label + towards - plain, rtol=1e-5, atol=1e-5)
    outside = predicted(representation_guidance=1.5, guidance_interval=(0.5, 1.0))
    assert torch.equal(outside, plain)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size for the model of the golden tensors, by the name SiT-golden/2."""
    monkeypatch.setitem(MODELS, "SiT-golden/2", Model("SiT", Size(2, 32, 4), 2))


def official(state: dict[str, Tensor], folder: Path, layout: Layout | None = None) -> Transformer:
    torch.save(training(state), folder / "redi.pt")
    options = SampleOptions(official=folder / "redi.pt", layout=layout)
    found = find_weights(options, TrainSettings(run=folder, model="SiT-golden/2"))
    assert found.layout is Layout.REDI
    return make_sampled(found.config, found.load(), torch.device("cpu"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("has_projector", [True, False])
def test_images_of_redi_s_files_are_those_of_its_sampler(
    methods: Any, tmp_path: Path, has_projector: bool
) -> None:
    golden, state = methods.below("redi.sampler."), methods.below("redi.model.")
    if has_projector:
        model = official(state, tmp_path)
    else:
        model = official(without_projectors(state), tmp_path, Layout.REDI)
    assert (model.config.channels, model.config.joint_channels) == (4, 8)
    found = solved("euler", guided(model, golden["y"]), golden["latents"], steps=5)
    assert_close(found.float(), golden["euler.plain"], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small")
def test_training_starts_from_redi_s_files_and_writes_them_again(
    methods: Any, redi: Stepped, tmp_path: Path
) -> None:
    state = methods.below("redi.model.")
    torch.save(training(state), tmp_path / "redi.pt")
    settings = settings_of((REDI, REPA))
    shapes = {"pca/tokens": (16, 8), "e/directions": (16, 24)}
    model, _ = model_of(settings, redi.model.config, shapes)
    start_from(tmp_path / "redi.pt", "ema", model, CPU)
    assert_close(model.state_dict(), redi.model.state_dict())
    back = as_redi(model.state_dict())
    assert back.keys() == state.keys()
    assert_close(back, state, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small")
def test_files_of_redi_that_do_not_tell_are_asked_about(methods: Any, tmp_path: Path) -> None:
    torch.save(training(without_projectors(methods.below("redi.model."))), tmp_path / "redi.pt")
    shapes = {"pca/tokens": (16, 8)}
    config = replace(BASE, joint_channels=8)
    model, _ = model_of(settings_of((REDI,)), config, shapes)
    with pytest.raises(WeightsError, match=r"'repa' .* or 'redi' \(time 0 is noise\)"):
        start_from(tmp_path / "redi.pt", "ema", model, CPU)
    start_from(tmp_path / "redi.pt", "ema", model, CPU, Layout.REDI)
