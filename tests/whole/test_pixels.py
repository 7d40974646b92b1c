"""JiT on cached crops, from images to numbers: there is no autoencoder anywhere."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import flip
from launching import assert_close_runs, launch
from runs import (
    CPU,
    assert_equal_runs,
    assert_falls,
    cached_batches,
    newest,
    trained,
    trained_in_parts,
)
from spaces import build_pixels
from typer.testing import CliRunner

import repa_cache
from cache.layout import PIXELS
from cache.metadata import column_names
from cache.reader import Cache
from cache.verify import find_all_faults
from pipeline.commands import app
from pipeline.config import Config, ConfigError, load_config
from stages.analyze.analysis_options import StateOptions
from stages.analyze.losses import measure_losses
from stages.analyze.subject import open_subject
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.train.latent_mean import read_mean
from stages.train.terms.denoising import CleanImage
from stages.weights.run_folder import latent_mean_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of crops and of tokens of both views."""
    folder = tmp_path_factory.mktemp("pixels")
    build_pixels(folder)
    return folder


@pytest.fixture
def configured(folder: Path, tmp_path: Path) -> Callable[..., Config]:
    own = f"train.run={tmp_path / 'run'}"
    return lambda *more: load_config(folder / "pipeline.toml", [own, *more])


def test_a_cache_of_pixels_has_crops_and_tokens_and_no_latents(
    configured: Callable[..., Config],
) -> None:
    config = configured()
    tokens = "features/efficientnet-lite0"
    assert column_names(config.cache.path) == [tokens, f"{tokens}.flipped", PIXELS]
    assert build(config.encode, CPU.device).counts.shards == 0


def test_a_loop_of_one_s_own_has_images_in_the_place_of_latents(
    configured: Callable[..., Config],
) -> None:
    cache = repa_cache.open(configured().cache.path)
    batch = next(cache.batches(4, ["efficientnet-lite0"], steps=1))
    assert torch.equal(batch.latents, (batch.moments - 127.5) * (1 / 127.5))
    assert batch.latents.abs().max() <= 1
    assert cache.latents[[0, 1]].shape == (2, 3, 32, 32)


def test_mirrored_images_are_read_from_the_same_crops(configured: Callable[..., Config]) -> None:
    config = configured()
    cache = Cache(config.cache.path)
    crops = torch.from_numpy(cache.column(PIXELS).values("pixels", np.arange(len(cache.rows))))
    batches = cached_batches(config)
    views: set[int] = set()
    for step in range(4):
        batch, numbers = batches.read(step), batches.rows(step)
        for place, number in enumerate(numbers.tolist()):
            view, row = divmod(number, len(cache.rows))
            wanted = crops[row].flip(-1) if view else crops[row]
            assert torch.equal(batch["moments"][place].float(), wanted)
            views.add(view)
    batches.close()
    assert views == {0, 1}


def test_the_mean_image_of_both_views_is_its_own_mirror_image(
    configured: Callable[..., Config],
) -> None:
    config = configured("train.model=SiT-XS/2", "train.align=[{kind='contrastive'}]")
    trained(config)
    mean = read_mean(latent_mean_path(config.train.run))
    stored = repa_cache.open(config.cache.path).latents[range(21)]
    images = torch.from_numpy(stored).double() / 127.5 - 1
    assert torch.equal(mean, mean.flip(-1))
    both = torch.cat([images, images.flip(-1)]).mean(dim=0)
    torch.testing.assert_close(mean, both)


def test_a_run_learns_resumes_bit_for_bit_and_is_drawn_and_measured(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trained_in_parts(configured, tmp_path)
    assert list(newest(whole).state["columns"]) == [
        PIXELS,
        *(f"features/efficientnet-lite0{view}" for view in ("", ".flipped")),
    ]
    lines = repa_cache.run(whole).lines()
    assert "fd_efficientnet-lite0" in lines
    path = str(whole.cache.path.parent / "pipeline.toml")
    for words in (["verify"], ["inspect", "--pictures", "--out", str(tmp_path / "p.html")]):
        shown = CliRunner().invoke(app, [*words, "--config", path])
        assert shown.exit_code == 0, shown.output
    longer = configured("train.steps=60", "train.learning_rate=3e-3", f"train.run={tmp_path / 'l'}")
    trained(longer)
    assert_falls(longer, "denoising")
    assert_falls(longer, "alignment/efficientnet-lite0")
    subject = open_subject(longer.train.run, (), StateOptions(cache=longer.cache.path, rows=12))
    assert all(np.isfinite(one.mean) for one in measure_losses(subject, CPU.device).levels)


def test_dropout_is_the_same_when_a_run_goes_on(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    dropped = trained_in_parts(configured, tmp_path, "train.pixels.dropout=0.4")
    plain = configured(f"train.run={tmp_path / 'plain'}")
    trained(plain)
    with pytest.raises(AssertionError):
        assert_equal_runs(dropped, plain)
    recomputed = configured(
        "train.pixels.dropout=0.4",
        "train.compute.recompute_activations=true",
        f"train.run={tmp_path / 'recomputed'}",
    )
    trained(recomputed)
    assert_equal_runs(dropped, recomputed)


@pytest.mark.slow
def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    path, cache = folder / "pipeline.toml", f"cache.path={folder / 'tiny.zarr'}"
    alone = load_config(path, [f"train.run={tmp_path / 'alone'}", cache])
    trained(alone)
    two = [f"train.run={tmp_path / 'two'}", cache]
    launch(folder, [two])
    assert_close_runs(load_config(path, two), alone, 1e-4)


def test_a_damaged_crop_is_found_and_made_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    config = load_config(tmp_path / "copy" / "pipeline.toml")
    column = Cache(config.cache.path).column(PIXELS).column
    flip(column.shard_path(column.array("pixels"), 1), 4000)
    assert [fault.column for fault in find_all_faults(config.cache.path, 2)] == [PIXELS]
    build(config.encode, CPU.device, BuildOptions(repair=True))
    assert find_all_faults(config.cache.path, 2) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("latents.vae=demo-autoencoder", r"JiT-XS/8 diffuses pixels; set latents\.vae"),
        ("latents.scaling=measured", r"latents\.scaling: pixels have one of their own"),
        ("train.norm=rms", r"train\.norm: 'rms' is not for JiT-XS/8, which has its own"),
        ("sample.solver=heun", "'heun' is not for JiT; it takes jit-heun, jit-euler"),
        ("sample.time_shift=2.0", r"sample\.time_shift: JiT-XS/8 has a grid of times"),
        ("train.model=JiT-XS/64", "cannot cut latents of side 32 into its patches"),
        ("train.align=[{kind = 'contrastive'}]", "'contrastive' is not for JiT-XS/8"),
    ],
)
def test_what_does_not_fit_pixels_is_named(
    configured: Callable[..., Config], setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(setting)


def test_noise_grows_with_images_above_256_px() -> None:
    for side, scale in ((64, 1.0), (256, 1.0), (512, 2.0), (1024, 4.0)):
        noise = torch.ones(1, 3, 1, side)
        noisy, _ = CleanImage().pose(torch.zeros_like(noise), noise, torch.zeros(1))
        assert noisy.flatten()[0] == scale
