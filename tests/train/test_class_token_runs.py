"""Runs that diffuse a class token, from the cache to images and numbers."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from class_tokens import OTHER, TINY, entries, with_class_tokens
from marking import few_fast
from runs import (
    CPU,
    assert_equal_runs,
    cached_batches,
    drawn_into,
    image_bytes,
    log_values,
    newest,
    trained,
)
from safetensors.torch import load_file
from weights import assert_equal, export

from cache.reader import Cache
from pipeline.config import Config, ConfigError
from pipeline.report.records import read_run
from pipeline.report.report_page import about, write_own_report
from stages.evaluate.evaluate import evaluate, open_samples
from stages.sample.generate import GridDrawer
from stages.sample.solvers.solver import SampleError
from stages.train.cached_data import stored_arrays
from stages.train.loop import train
from stages.train.train_settings import RunError

Configure = Callable[..., Config]
REG = entries()
MEAN = f"{TINY} has no class token: the mean of its tokens stands for it"


def test_the_losses_of_a_short_run_fall(trainable: Configure) -> None:
    steps = ("train.steps=40", "train.checkpoint_every=40", "train.learning_rate=3e-3")
    trained(trainable(REG, *steps))
    lines = log_values(trainable())
    for name in ("loss", "class-token", f"alignment/{TINY}"):
        values = [line[name] for line in lines]
        assert np.mean(values[-8:]) < np.mean(values[:8]) - 0.05, name


@pytest.mark.parametrize(
    "settings",
    few_fast([(), ("train.compute.recompute_activations=true", "train.compute.micro_batches=2")]),
    ids=["plain", "recomputed"],
)
def test_four_steps_are_two_and_two(
    trainable: Configure, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = trainable(REG, *settings, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    trained(trainable(REG, *settings, "train.steps=2"))
    assert trained(trainable(REG, *settings)).start == 2
    assert_equal_runs(whole, trainable(REG))


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    ["train.compute.micro_batches=2", "train.compute.recompute_activations=true"],
)
def test_how_a_step_is_computed_changes_nothing_but_rounding(
    trainable: Configure, tmp_path: Path, setting: str
) -> None:
    plain, other = trainable(REG), trainable(REG, setting, f"train.run={tmp_path / 'other'}")
    trained(plain)
    trained(other)
    for line, expected in zip(log_values(other), log_values(plain), strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_the_class_token_goes_on_when_the_alignment_has_ended(
    trainable: Configure, tmp_path: Path
) -> None:
    ending = (REG, "train.align.1.until=2")
    whole = trainable(*ending, f"train.run={tmp_path / 'whole'}")
    trained(whole)
    names = [set(line) for line in log_values(whole)]
    assert all("class-token" in line for line in names)
    assert [f"alignment/{TINY}" in line for line in names] == [True, True, False, False]
    for steps in (1, 4):
        trained(trainable(*ending, f"train.steps={steps}"))
    assert_equal_runs(whole, trainable())


def test_the_moving_average_follows_the_class_token_s_parts(trainable: Configure) -> None:
    trained(trainable(REG, "train.ema_decay=0.5"))
    average, model = (newest(trainable()).weights(name) for name in ("ema", "model"))
    for name in ("cls_projectors2.weight", "wg_norm.bias", "final_layer.linear_cls.weight"):
        assert (average[name] != model[name]).any(), name
        assert average[name].any(), name
    assert torch.equal(average["pos_embed"], model["pos_embed"])


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_class_token_is_read_where_there_is_one_and_nothing_else_for_it(
    trainable: Configure, built: Path, tmp_path: Path, storage: str
) -> None:
    config = trainable(*with_class_tokens(built, tmp_path, storage))
    with closing(cached_batches(config)) as batches:
        batch, rows = batches.read(0), batches.rows(0)
        # Codes without scales, as a cosine needs none.
        assert len(batches.take(1)) == len(("moments", "tokens", "class_token"))
    column = Cache(config.tensors.path).column(f"features/{OTHER}")
    expected = torch.from_numpy(column.read("class_token", rows)).float()
    assert torch.equal(batch[f"{OTHER}/vector"], expected)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_the_mean_of_tokens_stands_for_a_class_token_that_is_not_there(
    trainable: Configure, built: Path, tmp_path: Path, storage: str
) -> None:
    config = trainable(*with_class_tokens(built, tmp_path, storage, class_token=False))
    with closing(cached_batches(config)) as batches:
        batch, rows = batches.read(0), batches.rows(0)
        scales = ["token_scale"] if storage == "int8" else []
        assert len(batches.take(1)) == len(("moments", "tokens", *scales))
    column = Cache(config.tensors.path).column(f"features/{OTHER}")
    assert stored_arrays(f"{OTHER}/vector", column.column) == ("tokens", *scales)
    expected = torch.from_numpy(column.values("tokens", rows)).mean(dim=1)
    torch.testing.assert_close(batch[f"{OTHER}/vector"], expected, rtol=1e-5, atol=1e-6)
    assert trained(config).step == 4


@pytest.mark.slow
def test_it_is_said_that_the_mean_stands_for_it(
    trainable: Configure, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(trainable(REG))
    assert MEAN in capsys.readouterr().err.splitlines()
    run = trainable().train.run
    write_own_report(run)
    description = about(read_run(run))
    assert f"class token of {TINY} diffused along, weight 0.03" in description
    assert MEAN in description
    assert MEAN in next(run.glob("*.html")).read_text()
    other = trainable(*with_class_tokens(built, tmp_path), f"train.run={tmp_path / 'other'}")
    trained(other)
    assert "class token: the mean" not in capsys.readouterr().err
    assert "notes" not in newest(other).state


def test_the_encoder_of_a_class_token_alone_may_have_tokens_on_any_grid(
    trainable: Configure, built: Path, tmp_path: Path
) -> None:
    settings = with_class_tokens(built, tmp_path, tokens=9)
    alone = f"train.align=[{{kind = 'class-token', encoder = '{OTHER}'}}]"
    config = trainable(*settings, f"encoders.{OTHER}.input_size=42", alone)
    assert trained(config).step == 4
    with pytest.raises(ConfigError, match="its tokens lie on a grid of 3 x 3"):
        trainable(*settings, f"encoders.{OTHER}.input_size=42")


@pytest.fixture
def reg(trainable: Configure) -> Config:
    """A run of four steps, which guides its class token by a weight of its own."""
    guided = ("sample.guidance=2.0", "sample.class_guidance=3.0")
    config = trainable(REG, "train.ema_decay=0.5", "train.learning_rate=1e-2", *guided)
    trained(config)
    return config


def test_samples_are_drawn_without_a_cache_and_judged(reg: Config, tmp_path: Path) -> None:
    nowhere = reg.model_copy(
        update={"cache": reg.cache.model_copy(update={"path": tmp_path / "none.zarr"})}
    )
    samples = drawn_into(tmp_path / "drawn", nowhere).samples
    manifest = json.loads((samples.folder / "manifest.json").read_text())
    assert (manifest["guidance"], manifest["class_guidance"]) == (2.0, 3.0)
    assert manifest["aligned_with"] == [TINY]
    assert drawn_into(tmp_path / "drawn", nowhere).images == 0
    ((result,),) = evaluate(reg.evaluate, [open_samples(samples.folder, 2)], reg.encode, CPU)
    assert (result.metric, result.images) == (f"fd_{TINY}", 6)
    assert np.isfinite(result.value)
    assert "the model was aligned to this encoder" in result.remarks


def test_the_weight_of_the_class_token_s_guidance_is_part_of_what_was_drawn(
    reg: Config, tmp_path: Path
) -> None:
    def with_weight(weight: float | None) -> Config:
        sample = reg.sample.model_copy(update={"class_guidance": weight})
        return reg.model_copy(update={"sample": sample})

    first = image_bytes(drawn_into(tmp_path / "drawn", reg).samples)
    for weight in (None, 1.0):
        others = image_bytes(drawn_into(tmp_path / str(weight), with_weight(weight)).samples)
        assert others != first
    with pytest.raises(SampleError, match=r"class_guidance: folder 3.0, configuration 1.0"):
        drawn_into(tmp_path / "drawn", with_weight(1.0))
    # Nothing is guided by a weight of 1.
    drawn = (
        image_bytes(drawn_into(tmp_path / str(w), with_weight(w)).samples) for w in (None, 1.0)
    )
    assert next(drawn) == next(drawn)


def test_sample_grids_are_those_of_the_run_and_change_nothing(
    trainable: Configure, tmp_path: Path
) -> None:
    config = trainable(REG, "train.grid_every=2", "sample.class_guidance=2.0")
    draw = GridDrawer(config.sample, config.train, config.decoder, CPU.device)
    train(config.train, config.tensors, CPU, draw)
    grids = sorted(path.name for path in (config.train.run / "grids").iterdir())
    assert grids == ["step-00000002.png", "step-00000004.png"]
    last = drawn_into(config.train.run / "samples" / "last", config).samples
    assert (config.train.run / "grids" / grids[-1]).read_bytes() == last.grid.read_bytes()
    plain = trainable(REG, f"train.run={tmp_path / 'plain'}")
    trained(plain)
    assert_equal_runs(trainable(), plain)


def test_an_export_has_the_names_of_reg_s_code_and_comes_back(
    reg: Config, built: Path, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    said = export(built, reg.train.run, path)
    assert "REG's generate.py with --model=SiT-XS/2 --encoder-depth=2" in said
    assert "--projector-embed-dims=112 --mode=sde" in said
    assert "a class token of 112 features" in said
    held, written = newest(reg).weights("ema"), load_file(path)
    assert_equal(written, held)
    assert written["pos_embed"].shape == (1, 17, 128)
    assert written["cls_projectors2.weight"].shape == (128, 112)
    assert written["final_layer.linear_cls.bias"].shape == (112,)
    drawn = [drawn_into(tmp_path / "own", reg), drawn_into(tmp_path / "file", reg, official=path)]
    one, other = (image_bytes(each.samples) for each in drawn)
    assert one == other


@pytest.mark.parametrize("layout", ["sit", "sit-no-sigma"])
def test_sit_s_code_is_given_no_class_token(
    reg: Config, built: Path, tmp_path: Path, layout: str
) -> None:
    said = export(built, reg.train.run, tmp_path / "w.pt", "--layout", layout, status=1)
    assert "class token" in said
    assert not (tmp_path / "w.pt").exists()


ALIGNED = f"{{kind = 'repa', encoder = '{TINY}', depth = 2, class_token = true}}"
TOKEN = f"{{kind = 'class-token', encoder = '{TINY}'}}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            (f"train.align=[{TOKEN}, {TOKEN}]",),
            "align.1.kind: a run has one entry of 'class-token' at",
        ),
        ((REG, "train.model=DiT-XS/2"), "align.0.kind: 'class-token' is for SiT"),
        ((f"train.align=[{ALIGNED}]",), "align.0.class_token: no entry of kind 'class-token'"),
        ((REG, "train.align.0.until=2"), "class-token has no end"),
        ((REG, "train.align.0.depth=2"), "train.align.0.depth"),
        ((REG, "train.align.0.encoder=none"), r"align.0.encoder: 'none' has no section"),
        (
            ("sample.class_guidance=2.0", "train.grid_every=2"),
            "sample.class_guidance: no entry of kind 'class-token'",
        ),
        (("sample.class_guidance=-1.0",), "sample.class_guidance"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    trainable: Configure, settings: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(*settings)


def test_a_class_token_s_guidance_needs_a_class_token_and_a_null_class(
    trainable: Configure, tmp_path: Path
) -> None:
    plain = trainable("sample.class_guidance=2.0")
    trained(plain)
    with pytest.raises(
        SampleError, match=r"class_guidance is 2.0, but the model has no class token"
    ):
        drawn_into(tmp_path / "drawn", plain)
    settings = (REG, "train.label_dropping=0", "sample.class_guidance=2.0")
    labelled = trainable(*settings, f"train.run={tmp_path / 'labelled'}")
    trained(labelled)
    with pytest.raises(SampleError, match=r"class_guidance is 2.0, but .* without label dropping"):
        drawn_into(tmp_path / "labels", labelled)


def test_a_run_does_not_go_on_with_or_without_a_class_token(trainable: Configure) -> None:
    trained(trainable(REG, "train.steps=2"))
    with pytest.raises(RunError, match=r"align.0.kind"):
        trained(trainable())
    with pytest.raises(RunError, match=r"align.1.class_token: run true, configuration false"):
        trained(trainable(REG, "train.align.1.class_token=false"))


def test_a_run_starts_from_one_with_a_class_token(trainable: Configure, reg: Config) -> None:
    more = trainable(REG, f"train.init_from={reg.train.run}", f"train.run={reg.train.run}-2")
    assert trained(more).step == 4
    assert newest(more).model == newest(reg).model
    assert newest(more).model.class_features == 112
