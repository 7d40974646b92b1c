import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_cache import fill, make_cache, make_column, make_rows
from torch import Tensor
from typer.testing import CliRunner

from cache.errors import IncompleteCacheError, StaleCacheError
from pipeline.commands import analyze, app
from stages.analyze.analysis_options import (
    AlignmentOptions,
    AnalysisError,
    ProbeOptions,
    StateOptions,
)
from stages.analyze.hidden_states import HiddenStates, measure_cknna, measure_probes
from stages.analyze.neighbours import cknna, find_neighbours
from stages.analyze.subject import Subject, open_subject, spread_rows
from stages.analyze.tokens import mean_latents, mean_tokens
from stages.model.diffusion import diffuse
from stages.sample.sampler import make_sampled
from stages.train.randomness import Stream, seed_for
from stages.train.terms.run_terms import objective_of
from stages.train.train_settings import TrainSettings

CPU = torch.device("cpu")
EFFICIENTNET = "efficientnet-lite0"
SUBCOMMANDS = [command.name for command in analyze.app.registered_commands]


def invoke(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["analyze", *arguments])
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def subject(built: Path, runs: Path) -> Callable[..., Subject]:
    """A run that has been trained, sit, plain or dit, with its cache."""

    def opened(run: str = "sit", encoders: tuple[str, ...] = (), **options: Any) -> Subject:
        options = {"cache": built / "tiny.zarr", "levels": (0.2, 0.6), **options}
        return open_subject(runs / run, encoders, StateOptions(**options))

    return opened


def states_of(subject: Subject, level: float) -> Tensor:
    return HiddenStates(subject, CPU).at(level)


def normal(row: int, draw: int) -> Tensor:
    source = torch.Generator().manual_seed(seed_for(0, Stream.ANALYSIS, row, draw))
    return torch.randn(4, 8, 8, generator=source)


@pytest.mark.parametrize("family", ["sit", "dit"])
@pytest.mark.parametrize("is_conditional", [False, True])
def test_hidden_states_are_those_of_a_forward_pass_by_hand(
    subject: Callable[..., Subject], family: str, is_conditional: bool
) -> None:
    opened = subject(family, is_conditional=is_conditional, batch_size=5)
    found = states_of(opened, 0.3)
    assert found.shape == (4, 21, 128)
    model = make_sampled(opened.found.model, opened.found.weights("ema"), CPU)
    for place in (0, 7, 20):
        row = int(opened.rows[place])
        moments = torch.from_numpy(opened.latents.read("moments", [row])).float()
        clean = (moments[:, :4] + moments[:, 4:] * normal(row, 0)) * 0.5
        time = torch.tensor([300 if family == "dit" else 0.3])
        noisy = diffuse(clean, normal(row, 1), time) if family == "dit" else None
        noisy = 0.7 * clean + 0.3 * normal(row, 1) if noisy is None else noisy
        label = opened.cache.rows.label[row] if is_conditional else 3
        tokens = model.x_embedder(noisy) + model.pos_embed
        condition = model.t_embedder(time) + model.y_embedder(torch.tensor([label]))
        for block, own in enumerate(model.blocks):
            tokens, _ = own(tokens, condition)
            torch.testing.assert_close(
                found[block, place], tokens[0].mean(dim=0), rtol=1e-4, atol=1e-5
            )


def test_neither_batches_nor_the_other_images_change_a_hidden_state(
    subject: Callable[..., Subject],
) -> None:
    whole, single = (states_of(subject(batch_size=size), 0.6) for size in (64, 1))
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    few = replace(subject(), rows=subject().rows[[3, 11]])
    torch.testing.assert_close(states_of(few, 0.6), whole[:, [3, 11]], rtol=1e-4, atol=1e-5)


def test_only_the_blocks_that_are_asked_for_are_kept(subject: Callable[..., Subject]) -> None:
    some = subject(blocks=(4, 2))
    assert some.blocks == (2, 4)
    torch.testing.assert_close(states_of(some, 0.2), states_of(subject(), 0.2)[[1, 3]])


@pytest.mark.parametrize("family", ["SiT", "DiT"])
def test_a_level_of_noise_is_the_time_that_has_it(family: str) -> None:
    settings = TrainSettings(run=Path("run"), model=f"{family}-B/2")
    objective = objective_of(settings)
    levels = torch.arange(1000) / 1000
    torch.testing.assert_close(objective.level(objective.time(levels)), levels)
    assert float(objective.level(objective.time(torch.ones(1)))) == pytest.approx(1, abs=1.1e-3)


def test_cknna_of_a_run_is_that_of_its_hidden_states(subject: Callable[..., Subject]) -> None:
    opened = subject()
    found = measure_cknna(opened, AlignmentOptions(neighbours=3, is_raw=True), CPU)
    assert list(found.scores) == [EFFICIENTNET]
    tokens = mean_tokens(opened.encoders[EFFICIENTNET], opened.rows)
    states = states_of(opened, 0.6)
    expected = [cknna(find_neighbours(s, 3), find_neighbours(tokens, 3)) for s in states]
    np.testing.assert_allclose(found.scores[EFFICIENTNET][:, 1], expected)


def test_probes_of_a_run_have_references(subject: Callable[..., Subject]) -> None:
    found = measure_probes(subject("dit"), ProbeOptions(epochs=3), CPU)
    assert (len(found.hidden), len(found.hidden[0])) == (4, 2)
    assert list(found.references) == [f"{EFFICIENTNET}, mean token", "tiny-vae, mean latent"]
    assert (found.classes, found.trained, found.held_out) == (3, 17, 4)


def test_pooled_features_are_means_of_what_is_cached(subject: Callable[..., Subject]) -> None:
    opened = subject()
    tokens = opened.encoders[EFFICIENTNET].values("tokens", opened.rows)
    pooled = mean_tokens(opened.encoders[EFFICIENTNET], opened.rows)
    np.testing.assert_allclose(pooled, tokens.mean(axis=1), rtol=1e-6)
    moments = opened.latents.read("moments", opened.rows).astype(np.float32)
    latents = mean_latents(opened.latents, opened.rows)
    np.testing.assert_allclose(latents, moments[:, :4].mean(axis=(2, 3)), rtol=1e-5)


def test_rows_are_spread_over_the_cache(subject: Callable[..., Subject]) -> None:
    readers = [subject().latents]
    assert spread_rows(readers, 7).tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert spread_rows(readers, 1000).tolist() == list(range(21))
    readers[0].__dict__["valid"] = np.arange(21) % 2 == 1
    assert spread_rows(readers, 5).tolist() == [1, 5, 9, 13, 17]


def test_what_does_not_fit_is_refused(
    subject: Callable[..., Subject], runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(AnalysisError, match="has no encoder 'efficientnet'; did you mean"):
        subject(encoders=("efficientnet",))
    with pytest.raises(AnalysisError, match="blocks 1 to 4, but no 5"):
        subject(blocks=(2, 5))
    make_cache(tmp_path / "other.zarr")
    with pytest.raises(IncompleteCacheError, match="no column latents/tiny-vae"):
        subject(cache=tmp_path / "other.zarr")
    run = tmp_path / "run"
    shutil.copytree(runs / "sit", run)
    with pytest.raises(AnalysisError, match=r"does not say where the cache lies.*--cache"):
        open_subject(run, (), StateOptions())
    (run / "config.json").write_text(json.dumps({"cache": {"path": "gone.zarr"}}))
    with pytest.raises(AnalysisError, match=r"gone\.zarr, is not there.*--cache"):
        open_subject(run, (), StateOptions())


def edit_state(run: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        edit(state)
        file.write_text(json.dumps(state))


def test_latents_of_another_recipe_are_refused_and_encoders_of_one_are_named(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "sit", tmp_path / "run")
    options = StateOptions(cache=built / "tiny.zarr")
    edit_state(tmp_path / "run", lambda s: s["columns"].update({f"features/{EFFICIENTNET}": "x"}))
    (note,) = open_subject(tmp_path / "run", (), options).notes
    assert "by another recipe than the run was aligned to" in note
    edit_state(tmp_path / "run", lambda s: s["columns"].update({"latents/tiny-vae": "x"}))
    with pytest.raises(StaleCacheError, match="another recipe than what"):
        open_subject(tmp_path / "run", (), options)


def test_a_model_without_a_null_class_has_to_be_told_labels(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "sit", tmp_path / "run")
    edit_state(tmp_path / "run", lambda s: s["model"].update({"has_null_class": False}))
    options = StateOptions(cache=built / "tiny.zarr")
    with pytest.raises(AnalysisError, match=r"without label dropping.*--conditional"):
        open_subject(tmp_path / "run", (), options)
    told = replace(options, is_conditional=True)
    assert open_subject(tmp_path / "run", (), told).labels.max() == 2
    edit_state(tmp_path / "run", lambda s: s["model"].update({"classes": 1000}))
    with pytest.raises(AnalysisError, match="the model has 1000 classes"):
        open_subject(tmp_path / "run", (), told)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_analysis_has_help_with_an_example(name: str) -> None:
    assert f"Example: repa-cache analyze {name}" in invoke(name, "--help")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--levels", "0.1,2", "expected numbers from 0 to 1"),
        ("--levels", "", "expected numbers from 0 to 1"),
        ("--blocks", "1,two", "expected whole numbers"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: str, message: str) -> None:
    assert message in invoke("cknna", "run", option, value, status=1)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "has no checkpoint" in invoke("probe", str(tmp_path), status=1)
    assert "There is no cache" in invoke("encoders", str(tmp_path / "x.zarr"), status=1)


def analysed(folder: Path, stem: str) -> list[dict[str, str]]:
    """The rows of an analysis's CSV file, beside which there are a picture and a page."""
    with Image.open(folder / f"{stem}.png") as picture:
        assert picture.size[0] > 1000
    page = (folder / f"{stem}.html").read_text()
    assert "<svg" in page
    assert "http" not in page
    with (folder / f"{stem}.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_cknna_writes_a_table_a_picture_and_a_page(built: Path, runs: Path, tmp_path: Path) -> None:
    common = ("--cache", str(built / "tiny.zarr"), "--out", str(tmp_path), "--neighbours", "3")
    output = invoke("cknna", str(runs / "sit"), "--levels", "0.7,0.2", *common)
    assert re.search(rf"{EFFICIENTNET} +0\.\d+ +block \d, noise 0\.[27] +block 2: 0\.\d+", output)
    rows = analysed(tmp_path, "cknna-step-00000002")
    assert [(row["block"], row["noise"]) for row in rows][:3] == [
        *(("1", "0.2"), ("1", "0.7"), ("2", "0.2"))
    ]
    assert {row["aligned_with"] for row in rows} == {"1"}
    assert all(0 <= float(row["cknna"]) <= 1 for row in rows)
    chosen = ("--checkpoint", "1", "--weights", "model", "--blocks", "4", "--raw")
    invoke("cknna", str(runs / "plain"), *chosen, *common)
    rows = analysed(tmp_path, "cknna-step-00000001-model")
    assert {row["aligned_with"] for row in rows} == {"0"}
    assert len(rows) == 5


def test_probe_finds_the_cache_of_the_run_by_itself(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "dit"
    shutil.copytree(runs / "dit", run)
    (tmp_path / "tiny.zarr").symlink_to(built / "tiny.zarr")
    (run / "config.json").write_text(json.dumps({"cache": {"path": "tiny.zarr"}}))
    output = invoke("probe", str(run), "--epochs", "2", "--conditional", "--levels", "0.5")
    assert "hidden states at noise 0.5: best is block" in output
    assert "trained on 5.67 images of each class" in output
    assert "was told each image's label" in output
    rows = analysed(run / "analysis", "probe-step-00000002")
    assert [row["features"] for row in rows[-3:]] == [
        *("hidden states", f"{EFFICIENTNET}, mean token", "tiny-vae, mean latent")
    ]
    assert [row["block"] for row in rows[:5]] == ["1", "2", "3", "4", ""]
    assert {row["held_out"] for row in rows} == {"4"}
    assert {row["top5"] for row in rows} == {""}


def add_encoder(path: Path, name: str) -> None:
    column = make_column(path, f"features/{name}")
    for shard in range(column.shards):
        fill(column, shard, make_rows())


def test_encoders_are_compared(tmp_path: Path) -> None:
    make_cache(tmp_path / "two.zarr")
    add_encoder(tmp_path / "two.zarr", "y")
    output = invoke("encoders", str(tmp_path / "two.zarr"), "--epochs", "2")
    assert re.search(r"y +4 x 4 x 130 float16 +4\.7 kB +-?0\.\d+ +-?0\.\d+ +0\.\d+", output)
    assert "From more spatial structure to less, by LDS:" in output
    one, other = analysed(tmp_path, "two-encoders")
    assert (one["tokens"], one["features"], one["bytes_per_image"]) == ("16", "130", "4664")
    assert (one["lds"], one["cknna y"]) == (other["lds"], "1.000000")
    assert float(one["class_token_top1"]) <= 1
    invoke("encoders", str(tmp_path / "two.zarr"), "--encoders", "x", "--out", str(tmp_path / "o"))
    (alone,) = analysed(tmp_path / "o", "two-encoders")
    assert alone["encoder"] == "x"
    assert alone["lds"] == one["lds"]
    output = invoke("encoders", str(tmp_path / "two.zarr"), "--no-probe", "--out", str(tmp_path))
    assert "probe" not in output.partition("Over 27 encoders")[0]
    unprobed, _ = analysed(tmp_path, "two-encoders")
    assert (unprobed["lds"], unprobed["mean_token_top1"]) == (one["lds"], "")


def test_a_cache_without_encoders_is_refused(tmp_path: Path) -> None:
    column = make_cache(tmp_path / "none.zarr")
    shutil.rmtree(column.folder)
    assert "has no encoder" in invoke("encoders", str(tmp_path / "none.zarr"), status=1)


def test_without_encoders_hidden_states_are_probed_but_not_compared(
    built: Path, runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr")
    shutil.rmtree(tmp_path / "tiny.zarr" / "features" / EFFICIENTNET)
    common = (str(runs / "plain"), "--cache", str(tmp_path / "tiny.zarr"), "--out", str(tmp_path))
    assert "has no encoder" in invoke("cknna", *common, status=1)
    invoke("probe", *common, "--epochs", "1", "--levels", "0.5")
    rows = analysed(tmp_path, "probe-step-00000002")
    assert [row["features"] for row in rows] == 4 * ["hidden states"] + ["tiny-vae, mean latent"]


@pytest.mark.slow
def test_the_pages_are_fine_in_a_browser(built: Path, runs: Path, tmp_path: Path) -> None:
    from browser import assert_fine

    common = ("--cache", str(built / "tiny.zarr"), "--out", str(tmp_path))
    invoke("cknna", str(runs / "sit"), *common)
    invoke("probe", str(runs / "sit"), "--epochs", "2", *common)
    invoke("encoders", str(built / "tiny.zarr"), "--out", str(tmp_path))
    pages = sorted(tmp_path.glob("*.html"))
    assert len(pages) == 3
    for page in pages:
        assert_fine(page)
