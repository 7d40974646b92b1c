"""Every family of autoencoders, tiny and with random weights, from images to numbers."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import flip
from marking import few_fast
from runs import CPU, newest, trained, trained_in_parts
from spaces import SPACES, pictures, published, save_space
from tiny import TINY, write_images
from typer.testing import CliRunner

import repa_cache
from cache.reader import Cache
from cache.verify import find_all_faults
from pipeline.commands import app
from pipeline.config import Config, load_config
from stages.encode.build import build
from stages.encode.build_options import BuildOptions
from stages.encode.images.crop_sources import open_crops, open_source
from stages.encode.networks.autoencoder import Autoencoder
from stages.latents import ScalingError, latent_shape, main_array, scaling_of
from stages.train.train_settings import RunError


@pytest.fixture(scope="module", params=few_fast(list(SPACES)))
def space(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a family's tiny autoencoder and its finished cache, called like the family."""
    folder = tmp_path_factory.mktemp("space") / request.param
    write_images(folder / "images")
    save_space(request.param, folder / "vae")
    (folder / "pipeline.toml").write_text(TINY.format(vae="./vae"))
    build(load_config(folder / "pipeline.toml").encode, CPU.device)
    return folder


@pytest.fixture
def configured(space: Path, tmp_path: Path) -> Callable[..., Config]:
    return lambda *more: load_config(
        space / "pipeline.toml", [f"train.run={tmp_path / 'run'}", *more]
    )


def crops_of(config: Config) -> torch.Tensor:
    """The images of all rows, uint8 [N, 3, S, S]."""
    rows = Cache(config.cache.path).rows
    with ThreadPoolExecutor(1) as pool:
        crops = open_crops(config.encode, open_source(config.encode), rows, pool, CPU.device)
        return torch.cat([batch.images for batch in crops.batches(range(len(rows)))])


def stored(config: Config) -> tuple[Any, torch.Tensor]:
    """The column of latents, and all of it."""
    column = Cache(config.cache.path).column(config.latents.column, verify=True)
    array = main_array(column.column).name
    return column.column, torch.from_numpy(column.values(array, np.arange(len(column.valid))))


def test_latents_are_those_that_others_make_and_pictures_too(
    space: Path, configured: Callable[..., Config]
) -> None:
    config, model = configured(), save_space(space.name, space / "again")
    mean, std = published(space.name, model, crops_of(config))
    column, values = stored(config)
    channels, height, width = latent_shape(column)
    assert (height, width) == (8, 8)
    assert values.shape[1] == (channels if space.name in ("dc", "taesd", "rae") else 2 * channels)
    normal = torch.randn(mean.shape)
    found = scaling_of(column, config.latents.scaling).sample(values, normal)
    expected = mean + std * normal
    assert (found - expected).abs().max() <= 2e-3 * expected.abs().max()
    autoencoder = Autoencoder.of(config.latents, CPU.device)
    wanted = (pictures(space.name, model, expected[:3]) * 127.5 + 127.5).clamp(0, 255)
    assert (autoencoder.decode(expected[:3]).float() - wanted).abs().max() <= 1.01


def test_a_run_from_images_to_numbers_and_one_that_is_resumed(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    whole = trained_in_parts(configured, tmp_path)
    column, _ = stored(whole)
    assert newest(whole).model.channels == latent_shape(column)[0]
    lines = repa_cache.run(whole).lines()
    assert "fd_efficientnet-lite0" in lines
    for command in (["verify"], ["inspect", "--pictures", "--out", str(tmp_path / "p.html")]):
        words = [*command, "--config", str(whole.cache.path.parent / "pipeline.toml")]
        shown = CliRunner().invoke(app, words)
        assert shown.exit_code == 0, shown.output
    batch = next(
        repa_cache.open(whole.cache.path).batches(4, ["efficientnet-lite0"], device="cpu", steps=1)
    )
    assert batch.latents.shape == (4, *latent_shape(column))


def test_a_damaged_shard_of_latents_is_found_and_made_again(space: Path, tmp_path: Path) -> None:
    shutil.copytree(space, tmp_path / "copy")
    config = load_config(tmp_path / "copy" / "pipeline.toml")
    column, before = stored(config)
    flip(column.shard_path(main_array(column), 1), 999)
    assert [fault.column for fault in find_all_faults(config.cache.path, 2)] == [column.name]
    build(config.encode, CPU.device, BuildOptions(repair=True))
    assert find_all_faults(config.cache.path, 2) == []
    assert torch.equal(stored(config)[1], before)


def test_measured_latents_have_a_deviation_of_one_and_are_not_encoded_again(
    space: Path, tmp_path: Path
) -> None:
    shutil.copytree(space, tmp_path / "copy")

    def config_of(*more: str) -> Config:
        return load_config(tmp_path / "copy" / "pipeline.toml", more)

    trained(config_of("train.steps=2"))
    measured = config_of(
        "latents.scaling=measured", f"train.run={tmp_path / 'm'}", "train.grid_every=2"
    )
    with pytest.raises(ScalingError, match=r"have not been measured\. Run `repa-cache build`"):
        trained(measured)
    made = build(measured.encode, CPU.device)
    assert made.counts.shards == 0
    column, values = stored(measured)
    scaling = scaling_of(column, "measured")
    channels, *_ = latent_shape(column)
    draws = [scaling.sample(values, torch.randn(len(values), channels, 8, 8)) for _ in range(60)]
    x = torch.stack(draws).movedim(2, 0).flatten(1)
    torch.testing.assert_close(x.mean(1), torch.zeros(channels), rtol=0, atol=0.02)
    torch.testing.assert_close(x.std(1), torch.ones(channels), rtol=0.02, atol=0)
    cache = repa_cache.open(measured.cache.path)
    batch = next(cache.batches(4, steps=1, scaling="measured", device="cpu"))
    assert batch.latents.std() < 2
    repa_cache.train(measured)
    kept = newest(measured).state["scaling"]
    assert kept == scaling.told
    # Decoded as they were trained on, also where the cache is not to be had.
    shutil.rmtree(measured.cache.path)
    drawn = repa_cache.sample(measured)
    autoencoder = Autoencoder.of(config_of("latents.scaling=measured").latents, CPU.device)
    with pytest.raises(ScalingError):
        autoencoder.decode(torch.zeros(1, channels, 8, 8))
    assert drawn.images == measured.sample.images


def test_a_run_goes_on_only_with_the_scaling_that_it_began_with(
    space: Path, tmp_path: Path
) -> None:
    shutil.copytree(space, tmp_path / "copy")
    more = ("train.steps=2", "latents.scaling=measured")
    config = load_config(tmp_path / "copy" / "pipeline.toml", more)
    build(config.encode, CPU.device)
    trained(config)
    longer = load_config(tmp_path / "copy" / "pipeline.toml", ["train.steps=3"])
    with pytest.raises(RunError, match=r"with other scaling \(rule: run \"measured\""):
        trained(longer)
