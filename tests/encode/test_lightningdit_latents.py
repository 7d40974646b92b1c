"""Latents of LightningDiT's preprocessing, from its files to a trained run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import CPU, cached_batches, trained_in_parts
from safetensors.torch import save_file
from tiny import TINY
from typer.testing import CliRunner

from cache.layout import FLIPPED
from cache.metadata import column_names
from cache.reader import Cache
from pipeline.commands import app
from pipeline.config import Config, ConfigError, load_config
from stages.encode.build import build
from stages.encode.images.sources import SourceError

LATENTS = "latents/tiny-vae"
# The width of the tiny autoencoder's latents, of 32 px.
SHAPE = (4, 8, 8)


def write_shard(folder: Path, name: str, classes: list[int], **changed: torch.Tensor) -> None:
    """A file as `extract_features.py` writes it, with numbers that tell it and the place in it."""
    seed = torch.Generator().manual_seed(len(name) + sum(map(ord, name)))
    tensors = {
        "latents": torch.randn(len(classes), *SHAPE, generator=seed),
        "latents_flip": torch.randn(len(classes), *SHAPE, generator=seed),
        "labels": torch.tensor(classes),
        **changed,
    }
    metadata = {"total_size": str(len(classes)), "dtype": "torch.float32", "device": "cpu"}
    save_file(tensors, folder / f"{name}.safetensors", metadata)


@pytest.fixture
def configured(tmp_path: Path, tiny_vae: Path) -> Callable[..., Config]:
    """Three files of two processes, and a configuration."""
    folder = tmp_path / "latents"
    folder.mkdir()
    write_shard(folder, "latents_rank00_shard000", [0, 1, 2, 0, 1])
    write_shard(folder, "latents_rank00_shard001", [2, 2])
    write_shard(folder, "latents_rank01_shard000", [1, 0, 0, 2, 1])
    torch.save({"mean": torch.zeros(1, 4, 1, 1)}, folder / "latents_stats.pt")
    document = TINY.format(vae=tiny_vae).replace(
        "[encoders.efficientnet-lite0]\ninput_size = 64", ""
    )
    (tmp_path / "pipeline.toml").write_text(document)
    own = (
        *("dataset.source=lightningdit", f"dataset.path={folder}", "latents.imported=true"),
        *("train.align=[]", "evaluate.frechet_encoders=[]", f"train.run={tmp_path / 'run'}"),
    )
    return lambda *more: load_config(tmp_path / "pipeline.toml", [*own, *more])


def given(config: Config, name: str) -> dict[str, torch.Tensor]:
    """The tensors of all images, by the keys of the cache."""
    from safetensors.torch import load_file

    assert config.dataset.path is not None
    return {
        f"{file.stem}/{number:06}": tensor
        for file in config.dataset.path.glob("*.safetensors")
        for number, tensor in enumerate(load_file(file)[name])
    }


@pytest.mark.parametrize("flip", ["false", "true"])
def test_they_become_a_cache_of_latents_without_deviations(
    configured: Callable[..., Config], flip: str
) -> None:
    config = configured(f"dataset.flip={flip}")
    assert build(config.encode, CPU.device).missing == 0
    cache = Cache(config.cache.path)
    views = {LATENTS: "latents", **({LATENTS + FLIPPED: "latents_flip"} if flip == "true" else {})}
    assert column_names(config.cache.path) == list(views)
    labels = given(config, "labels")
    for name, theirs in views.items():
        column, tensors = cache.column(name, verify=True), given(config, theirs)
        assert sorted(cache.rows.key.tolist()) == sorted(tensors)
        for row, key in enumerate(cache.rows.key.tolist()):
            stored = column.read("latents", [row])[0]
            np.testing.assert_array_equal(stored, tensors[key].numpy().astype(np.float16))
            assert cache.rows.label[row] == labels[key]
    assert build(config.encode, CPU.device).counts.shards == 0


def test_a_run_learns_from_them_and_they_are_seen_in_pictures(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    def flipped(*more: str) -> Config:
        return configured("dataset.flip=true", *more)

    build(flipped().encode, CPU.device)
    batches = cached_batches(flipped())
    read = {tuple(one["moments"].flatten()[:3].tolist()) for one in map(batches.read, range(4))}
    batches.close()
    assert len(read) > 1
    whole = trained_in_parts(flipped, tmp_path)
    (tmp_path / "pipeline.toml").rename(tmp_path / "moved.toml")
    for words in (["verify"], ["inspect", "--pictures", "--out", str(tmp_path / "p.html")]):
        shown = CliRunner().invoke(app, [*words, str(whole.cache.path)])
        assert shown.exit_code == 0, shown.output


def test_what_needs_images_is_refused_before_anything_runs(
    configured: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match="'lightningdit' has latents alone; set it to true"):
        configured("latents.imported=false")
    with pytest.raises(ConfigError, match=r"dataset\.pixels: the source 'lightningdit'"):
        configured("dataset.pixels=true")
    with pytest.raises(ConfigError, match=r"encoders\.dinov2-vit-b: .* no images for an encoder"):
        configured("encoders.dinov2-vit-b={}")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"latents": torch.zeros(2, 4, 8)}, "expected 3 axes"),
        ({"latents": torch.zeros(2, 4, 8, 4)}, "shape"),
        ({"latents": torch.zeros(3, *SHAPE)}, "a label and latents of each image"),
        ({"labels": torch.zeros(2)}, "a label and latents of each image"),
        ({"labels": torch.tensor([-1, 0])}, "label -1"),
        ({"latents": torch.full((2, *SHAPE), torch.nan)}, "finite"),
        ({"latents": torch.zeros(2, *SHAPE, dtype=torch.float64)}, "float32"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(
    configured: Callable[..., Config], changed: dict[str, torch.Tensor], named: str
) -> None:
    config = configured()
    assert config.dataset.path is not None
    write_shard(config.dataset.path, "latents_rank02_shard000", [0, 1], **changed)
    with pytest.raises(SourceError, match=named):
        build(config.encode, CPU.device)


def test_mirrored_latents_have_to_be_there_if_they_are_asked_for(
    configured: Callable[..., Config],
) -> None:
    config = configured("dataset.flip=true")
    assert config.dataset.path is not None
    path = config.dataset.path / "latents_rank02_shard000.safetensors"
    save_file({"latents": torch.zeros(1, *SHAPE), "labels": torch.tensor([0])}, path)
    with pytest.raises(SourceError, match=r"shard000\.safetensors: no latents_flip"):
        build(config.encode, CPU.device)
    build(configured().encode, CPU.device)


def test_latents_of_another_size_are_refused(configured: Callable[..., Config]) -> None:
    with pytest.raises(Exception, match=r"latents are \[4, 8, 8\], expected \[4, 16, 16\]"):
        build(configured("dataset.resolution=64").encode, CPU.device)
