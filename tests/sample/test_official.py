"""Sampling from published files of weights, and evaluating from the command line."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import drawn_into
from typer.testing import CliRunner
from weights import doubled, export

from pipeline.commands import app
from pipeline.config import Config, load_config
from stages.sample.generate import Drawn
from stages.sample.solvers.solver import SampleError
from stages.weights.export_options import Layout
from stages.weights.published import WeightsError

RUNNER = CliRunner()
LAYOUTS = [("sit", "repa"), ("sit", "sit"), ("sit", "sit-no-sigma"), ("dit", "dit")]


@pytest.fixture
def drawable(built: Path, runs: Path) -> Callable[..., Config]:
    """The configuration of a run that has been trained."""
    return lambda run, *overrides: load_config(
        built / "pipeline.toml",
        [f"train.run={runs / run}", f"train.model={run[0].upper()}iT-XS/2", *overrides],
    )


@pytest.mark.parametrize(("run", "layout"), LAYOUTS)
def test_a_published_file_gives_the_images_of_its_run(
    drawable: Callable[..., Config],
    built: Path,
    runs: Path,
    tmp_path: Path,
    run: str,
    layout: str,
) -> None:
    config, path = drawable(run, "sample.guidance=2.0"), tmp_path / "weights.pt"
    export(built, runs / run, path, "--layout", layout)
    expected = drawn_into(tmp_path / "own", config).samples
    found = drawn_into(tmp_path / "official", config, official=path, layout=Layout(layout)).samples
    for index in range(found.images):
        one, other = (np.asarray(Image.open(s.path(index)), int) for s in (found, expected))
        # Turned round and back, weights of times are rounded.
        assert abs(one - other).max() <= Layout(layout).has_time_reversed
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert (manifest["checkpoint"], manifest["classes"]) == ("weights.pt", 3)
    # A file with projectors was aligned, but it does not say to what.
    assert manifest["aligned_with"] == (None if layout == "repa" else [])
    assert manifest["layout"] == layout


@pytest.mark.parametrize(("run", "layout"), [("sit", "repa"), ("sit", "sit"), ("dit", "dit")])
def test_folders_whose_manifest_tells_no_layout_go_on_unless_time_was_not_turned(
    run: str, layout: str, drawable: Callable[..., Config], built: Path, runs: Path, tmp_path: Path
) -> None:
    export(built, runs / run, tmp_path / "weights.pt", "--layout", layout)

    def drawn() -> Drawn:
        return drawn_into(tmp_path / "drawn", drawable(run), official=tmp_path / "weights.pt")

    manifest = drawn().samples.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["layout"]
    manifest.write_text(json.dumps(content))
    if Layout(layout).has_time_reversed:
        with pytest.raises(SampleError, match='layout: folder nothing, configuration "sit"'):
            drawn()
    else:
        assert drawn().images == 0


def test_a_file_of_another_model_is_refused_with_the_right_name(
    drawable: Callable[..., Config], built: Path, runs: Path, tmp_path: Path
) -> None:
    export(built, runs / "sit", tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"Set train\.model to 'SiT-XS/2'"):
        config = drawable("sit", "train.model=SiT-S/2")
        drawn_into(tmp_path / "samples", config, official=tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"There is no .*none\.pt"):
        drawn_into(tmp_path / "samples", drawable("sit"), official=tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="--official takes a file, but"):
        drawn_into(tmp_path / "samples", drawable("sit"), official=runs / "sit")


def test_a_trained_half_that_is_dropped_is_said(
    drawable: Callable[..., Config],
    built: Path,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(built, runs / "sit", tmp_path / "weights.pt", "--layout", "sit-no-sigma")
    state = torch.load(tmp_path / "weights.pt")["ema"]
    torch.save(doubled(state), tmp_path / "doubled.pt")
    drawn_into(tmp_path / "samples", drawable("sit"), official=tmp_path / "doubled.pt")
    assert "half of its output is dropped" in capsys.readouterr().err


@pytest.fixture
def invoke(built: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command on the run of a SiT, in the folder of the built cache."""
    monkeypatch.chdir(built)

    def run(*arguments: str, status: int = 0, model: str = "sit") -> str:
        settings = ("--set", f"train.run={runs / model}", "--set", "train.device=cpu")
        result = RUNNER.invoke(app, [*arguments, *settings])
        assert result.exit_code == status, result.output
        return result.output

    return run


@pytest.mark.slow
def test_official_weights_are_drawn_and_judged_from_the_command_line(
    invoke: Callable[..., str], built: Path, runs: Path, tmp_path: Path, inception_weights: Path
) -> None:
    export(built, runs / "sit", tmp_path / "w.pt")
    folder, npz = tmp_path / "drawn", tmp_path / "drawn.npz"
    chosen = ("--out", str(folder), "--set", "sample.npz=true")
    assert "6 drawn" in invoke("sample", "--official", str(tmp_path / "w.pt"), *chosen)
    assert "nothing was missing" in invoke("sample", "--official", str(tmp_path / "w.pt"), *chosen)
    arguments: list[Any] = ["evaluate", str(npz), "--set", "evaluate.metrics=['is', 'recall']"]
    kept = ("--save-statistics", str(tmp_path / "kept.npz"))
    output = invoke(*arguments, *kept, "--inception-weights", str(inception_weights))
    assert re.search(r"is +[\d.]+ +6 ", output)
    assert re.search(r"recall +[\d.]+ +6 +tiny\.zarr +21", output)
    assert "whether the model was aligned to this encoder is not known" in output
    weights = ("--inception-weights", str(inception_weights))
    again = invoke(*arguments, *weights, "--reference", str(tmp_path / "kept.npz"))
    assert re.search(r"recall +[\d.]+ +6 ", again)
    report = json.loads((tmp_path / "drawn.json").read_text())
    expected = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    assert report["weights_sha256"]["inception"] == expected
    found = {(one["metric"], one["reference"]): one for one in report["results"]}
    cached, kept_file = str(built / "tiny.zarr"), kept[1]
    metrics = ("recall", "fd_efficientnet-lite0")
    expected_results = {(metric, place) for metric in metrics for place in (cached, kept_file)}
    assert found.keys() == {("is", None), *expected_results}
    assert found["recall", kept_file]["reference_images"] == 21
    assert found["recall", kept_file]["value"] == found["recall", cached]["value"]
    assert report["drawn"]["layout"] == "repa"


def test_mistakes_of_the_command_line_are_named(
    invoke: Callable[..., str], built: Path, runs: Path, tmp_path: Path
) -> None:
    output = invoke("sample", "--official", "w.pt", "--checkpoint", "3", status=1)
    assert "--checkpoint is of a run, --official of none" in output
    output = invoke("sample", "--layout", "sit", status=1)
    assert "--layout: of which file? Name it with --official." in output
    export(built, runs / "sit", tmp_path / "w.pt", "--layout", "sit-no-sigma")
    output = invoke("sample", "--official", str(tmp_path / "w.pt"), status=1)
    assert "w.pt does not tell whose code its weights are of" in output
    output = invoke("evaluate", "--reference", "nowhere.npz", status=1)
    assert "evaluate.reference: there is no file" in output
    output = invoke("evaluate", "--inception-weights", "nowhere.pth", status=1)
    assert "evaluate.inception_weights: there is no file" in output
    output = invoke("evaluate", "--set", "evaluate.metrics=['fit']", status=1)
    assert "did you mean 'fid'?" in output
