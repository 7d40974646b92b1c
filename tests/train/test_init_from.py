"""Runs that start from weights: of other runs, of checkpoints, and of exported files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import CPU, newest_of
from typer.testing import CliRunner
from weights import assert_equal, export

from pipeline.commands import app
from pipeline.config import Config
from stages.model.transformer import Transformer
from stages.train.cached_data import CachedData
from stages.train.loop import train
from stages.train.run import Run
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import RunError
from stages.weights.checkpoint import Checkpoint
from stages.weights.fitting import start_from
from stages.weights.published import WeightsError

Configure = Callable[..., Config]
FEWER = ("train.steps=2", "train.checkpoint_every=1")


def begun(config: Config) -> Run:
    data = CachedData(config.tensors, config.train.encoders)
    return Run(config.train, data, CPU, None, RunTerms.of(config.train))


@pytest.mark.parametrize("which", ["ema", "model"])
@pytest.mark.parametrize("kind", ["run", "checkpoint", "file"])
def test_a_run_starts_with_the_weights_it_is_given(
    kind: str, which: str, built: Path, runs: Path, trainable: Configure, tmp_path: Path
) -> None:
    source = newest_of(runs / "sit")
    places = {"run": runs / "sit", "checkpoint": source.folder, "file": tmp_path / "w.pt"}
    export(built, runs / "sit", tmp_path / "w.pt", "--weights", which)
    entry = "ema" if kind == "file" else which
    settings = (f"train.init_from={places[kind]}", f"train.init_weights={entry}")
    run = begun(trainable(*settings))
    assert run.step == 0
    for state in (run.model.state_dict(), run.averages["ema"].tensors):
        assert_equal(state, source.weights(which))


def test_an_older_checkpoint_may_be_named(runs: Path, trainable: Configure) -> None:
    folder = runs / "sit/checkpoints/step-00000001"
    run = begun(trainable(f"train.init_from={folder}"))
    assert_equal(run.model.state_dict(), Checkpoint(folder).weights("ema"))


def test_a_run_that_has_begun_needs_its_start_no_more(
    built: Path, runs: Path, trainable: Configure, tmp_path: Path
) -> None:
    export(built, runs / "sit", tmp_path / "w.pt")
    start = f"train.init_from={tmp_path / 'w.pt'}"
    whole = trainable(start, *FEWER, f"train.run={tmp_path / 'whole'}")
    train(whole.train, whole.tensors, CPU)
    half = trainable(start, "train.steps=1")
    train(half.train, half.tensors, CPU)
    (tmp_path / "w.pt").unlink()
    resumed = trainable(start, *FEWER)
    assert train(resumed.train, resumed.tensors, CPU).start == 1
    for name in ("model", "ema"):
        ours, theirs = newest_of(resumed.train.run), newest_of(whole.train.run)
        assert_equal(ours.weights(name), theirs.weights(name))


def test_a_run_does_not_go_on_as_if_it_had_started_from_elsewhere(
    runs: Path, trainable: Configure
) -> None:
    scratch = trainable("train.steps=1")
    train(scratch.train, scratch.tensors, CPU)
    config = trainable(f"train.init_from={runs / 'sit'}")
    with pytest.raises(RunError, match='init_from: run null, configuration "sit"'):
        train(config.train, config.tensors, CPU)


def test_a_run_may_move_together_with_what_it_started_from(
    runs: Path, trainable: Configure, tmp_path: Path
) -> None:
    here = trainable(f"train.init_from={runs / 'sit'}", "train.steps=1")
    train(here.train, here.tensors, CPU)
    moved = trainable(f"train.init_from={tmp_path / 'elsewhere/sit'}", "train.steps=2")
    assert train(moved.train, moved.tensors, CPU).start == 1


def test_plain_weights_are_aligned_with_new_projectors(
    runs: Path, trainable: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(trainable(f"train.init_from={runs / 'plain'}"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "projectors that start anew, as none there has their shape: projectors.0"
    fresh = begun(trainable()).model.state_dict()
    trunk = newest_of(runs / "plain").weights("ema")
    projectors = {n: t for n, t in fresh.items() if n.startswith("projectors.")}
    assert len(projectors) == 6
    assert_equal(run.model.state_dict(), {**trunk, **projectors})


def test_classes_with_and_without_a_null_class_have_different_tables(
    runs: Path, trainable: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(trainable(f"train.init_from={runs / 'sit'}", "train.label_dropping=0"))
    assert len(run.model.y_embedder.embedding_table.weight) == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "the label table starts anew: there 3 classes with a null class, "
        "here 3 classes without a null class"
    )


def test_as_many_rows_of_other_classes_start_anew_where_a_checkpoint_says_so(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = newest_of(runs / "plain")
    config = replace(source.model, classes=4, has_null_class=False)
    model = Transformer(config)
    before = model.y_embedder.embedding_table.weight.clone()
    start_from(source.folder, "ema", model, CPU)
    assert torch.equal(model.y_embedder.embedding_table.weight, before)
    assert "there 3 classes with a null class, here 4 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("sit", "DiT-XS/2", r"no predicted variance \(SiT\), here a predicted variance \(DiT\)"),
        ("dit", "SiT-XS/2", r"a predicted variance \(DiT\), here no .* train.model to 'DiT-XS/2'"),
    ],
)
def test_a_checkpoint_of_the_other_family_is_refused(
    name: str, model: str, message: str, runs: Path, trainable: Configure
) -> None:
    with pytest.raises(WeightsError, match=message):
        begun(trainable(f"train.init_from={runs / name}", f"train.model={model}"))


def test_training_from_weights_that_are_not_there_is_an_error_in_one_line(
    built: Path, tmp_path: Path
) -> None:
    settings = (f"train.run={tmp_path / 'run'}", f"train.init_from={tmp_path / 'none.pt'}")
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(
        app, ["train", "--config", str(built / "pipeline.toml"), *arguments]
    )
    assert result.exit_code == 1
    assert "none.pt, from which weights are to be read" in result.output
