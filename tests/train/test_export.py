"""Weights out, for published code and to come back."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import predict, published
from runs import CPU, newest_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights import State, assert_equal, export

from stages.model.transformer import Transformer
from stages.weights.checkpoint import Checkpoint
from stages.weights.export import FORMS
from stages.weights.export_options import Layout
from stages.weights.fitting import start_from
from stages.weights.published import TIMES, without_projectors


def loaded(path: Path) -> State:
    """A file's tensors, as the published samplers find them."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"ema", "steps"}
    assert type(content["ema"]) is dict
    found: State = content["ema"]
    return found


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sit", "repa"),
        ("sit", "sit"),
        ("sit", "sit-no-sigma"),
        ("plain", "repa"),
        ("plain", "sit"),
        ("dit", "dit"),
    ],
)
def test_exported_weights_come_back(
    name: str, layout: str, weights: str, suffix: str, built: Path, runs: Path, tmp_path: Path
) -> None:
    path, source = tmp_path / f"w{suffix}", newest_of(runs / name)
    export(built, runs / name, path, "--layout", layout, "--weights", weights)
    model = Transformer(source.model)
    start_from(path, "ema", model, CPU, Layout(layout))
    found = model.state_dict()
    trunk = {n: t for n, t in source.weights(weights).items() if not n.startswith("projectors")}
    if Layout(layout).has_time_reversed:
        # Turned round twice, weights of times are rounded twice.
        turned, expected = found.pop(TIMES), trunk.pop(TIMES)
        torch.testing.assert_close(turned, expected, rtol=1e-6, atol=1e-7)
    assert_equal(found, trunk)
    if layout == "repa":
        assert_equal(loaded(path), source.weights(weights))


def shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout is not Layout.JIT])
def test_a_b_2_has_the_names_and_shapes_of_the_published_code(
    layout: Layout, official: Callable[[str], dict[str, Any]]
) -> None:
    family, convert = FORMS[layout]
    described = published(f"{family}-B/2")
    with torch.device("meta"):
        state = convert(described.make().state_dict(), described.config.patch)
    expected = official("sit_b2_state_dict")
    if layout is Layout.REDI:
        expected = {n.replace("projectors.0.", "projector."): s for n, s in expected.items()}
    elif layout is not Layout.REPA:
        expected = {n: s for n, s in expected.items() if not n.startswith("projectors.")}
    if layout in (Layout.SIT, Layout.DIT):
        expected |= {"final_layer.linear.weight": [32, 768], "final_layer.linear.bias": [32]}
    assert shapes(state) == expected


@pytest.mark.parametrize(
    ("name", "layout"),
    [("sit", "repa"), ("sit", "sit"), ("sit", "sit-no-sigma"), ("dit", "dit")],
)
def test_published_code_predicts_from_an_export_what_the_run_predicts(
    name: str, layout: str, built: Path, runs: Path, tmp_path: Path
) -> None:
    source = newest_of(runs / name)
    export(built, runs / name, tmp_path / "w.pt", "--layout", layout)
    model = Transformer(source.model)
    model.load_state_dict(without_projectors(source.weights("ema")))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((5, 4, 8, 8), generator=generator)
    time, labels = torch.rand(5, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    # SiT's own code counts time from noise to data, and so do its velocities.
    is_reversed = Layout(layout).has_time_reversed
    found = predict(
        loaded(tmp_path / "w.pt"),
        latents,
        1 - time if is_reversed else time,
        labels,
        source.model.heads,
        drops_half=layout == "sit",
    )
    expected = model(latents, time, labels)[0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(-found if is_reversed else found, expected, rtol=1e-4, atol=1e-5)


def test_the_line_says_what_was_written_and_what_loads_it(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    assert export(built, runs / "sit", path) == (
        f"{path}: ema of step 2 of SiT-XS/2, layout repa, 58 tensors of 1.3 M parameters; for "
        "REPA's generate.py with --model=SiT-XS/2 --encoder-depth=2 --projector-embed-dims=112 "
        "--num-classes=3, which does not know SiT-XS/2, latents of side 8, projector_dim=32\n"
    )
    path.unlink()
    assert "layout repa, 52 tensors" in export(built, runs / "plain", path)
    path.unlink()
    output = export(built, runs / "dit", path, "--weights", "model", "--checkpoint", "1")
    assert "model of step 1 of DiT-XS/2, layout dit, 52 tensors" in output
    assert "for DiT's samplers with --ckpt" in output
    assert torch.load(path, weights_only=True)["steps"] == 1
    assert_equal(
        loaded(path),
        {
            name: tensor
            for name, tensor in Checkpoint(runs / "dit/checkpoints/step-00000001")
            .weights("model")
            .items()
            if not name.startswith("projectors.")
        },
    )


def test_a_published_model_needs_no_more_than_arguments(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "sit", tmp_path / "run")
    path = newest_of(tmp_path / "run").folder / "state.json"
    state = json.loads(path.read_text())
    (term,) = state["settings"]["align"]
    term |= {"depth": 8, "projector_width": 2048}
    state["settings"] |= {"model": "SiT-XL/2", "interpolant": "cosine", "align": [term, term]}
    state["model"] |= {"classes": 1000, "side": 32, "qk_norm": True}
    path.write_text(json.dumps(state))
    second = {f"projectors.{number}.4.bias": torch.zeros(n) for number, n in enumerate((768, 1024))}
    for weights in (path.with_name("ema.safetensors"),):
        save_file({**load_file(weights), **second}, weights)
    output = export(built, tmp_path / "run", tmp_path / "w.pt")
    assert output.endswith(
        "for REPA's generate.py with --model=SiT-XL/2 --encoder-depth=8 "
        "--projector-embed-dims=768,1024 --qk-norm --path-type=cosine\n"
    )


def test_a_file_holds_no_more_than_its_layout(built: Path, runs: Path, tmp_path: Path) -> None:
    sizes = {}
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"w{suffix}"
        export(built, runs / "sit", path, "--layout", "sit-no-sigma")
        sizes[suffix] = path.stat().st_size
        numbers = sum(tensor.numel() for tensor in loaded(path).values())
        assert 4 * numbers < sizes[suffix] < 4 * numbers + 40_000
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {path.name for path in tmp_path.iterdir()} == {"w.pt", "w.safetensors"}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_never_overwritten(suffix: str, built: Path, runs: Path, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text("mine")
    output = export(built, runs / "sit", path, status=1)
    assert f"w{suffix} exists already" in output
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "layout"), [("sit", "dit"), ("dit", "sit"), ("dit", "repa"), ("dit", "sit-no-sigma")]
)
def test_the_layout_of_another_family_is_refused(
    name: str, layout: str, built: Path, runs: Path, tmp_path: Path
) -> None:
    output = export(built, runs / name, tmp_path / "w.pt", "--layout", layout, status=1)
    family = {"sit": "SiT-XS/2", "dit": "DiT-XS/2"}[name]
    assert re.search(rf"The layout {layout} is that of a .iT, .* is of {family}\.", output)
    assert not (tmp_path / "w.pt").exists()


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("w.pt", ("--checkpoint", "3"), "has no checkpoint of step 3, but of 1, 2."),
        ("w.npz", (), "w.npz: name it .safetensors, or one of .pt"),
        ("none/w.pt", (), "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_an_error_in_one_line(
    out: str, arguments: tuple[str, ...], message: str, built: Path, runs: Path, tmp_path: Path
) -> None:
    output = export(built, runs / "sit", tmp_path / out, *arguments, status=1)
    assert message in output
    assert output.startswith("repa-cache: ")
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def test_a_run_without_checkpoints_has_nothing_to_export(built: Path, tmp_path: Path) -> None:
    output = export(built, tmp_path / "run", tmp_path / "w.pt", status=1)
    assert "has no checkpoint. Run `repa-cache train` first." in output
