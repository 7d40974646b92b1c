"""Principal components: the fit, and the column that is made of tokens alone."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import flip
from tiny import TINY, save_jpeg, write_images
from tiny_cache import content
from torch.testing import assert_close

from cache.errors import StaleCacheError
from cache.reader import Cache
from cache.verify import Remedy, find_faults
from pipeline.config import Config, load_config
from pipeline.exits import ConfigError
from stages.encode.build import BuildSummary, build, find_columns
from stages.encode.build_options import BuildOptions, Cluster
from stages.encode.building.principal_components import (
    STATISTICS,
    RunningMoments,
    principal_components,
    projected,
)
from stages.encode.images.crop_batches import CropReader
from stages.encode.measuring.fidelity import measure_fidelity
from stages.encode.networks.registry import EncoderError

CPU = torch.device("cpu")
ENCODER, COLUMN = "features/efficientnet-lite0", "features/pca4"
SECTION = '[components.pca4]\nencoder = "efficientnet-lite0"\ncount = 4\n'


def fitted(rows: torch.Tensor, count: int, part: int) -> dict[str, torch.Tensor]:
    moments = RunningMoments(rows.shape[-1])
    for some in rows.split(part):
        moments.add(some)
    return principal_components(moments, count)


def plain_fit(rows: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """By the singular values of all standardised rows at once."""
    rows = rows.astype(np.float64)
    mean, std = rows.mean(0), rows.std(0)
    even = (rows - mean) / std
    _, values, axes = np.linalg.svd(even - even.mean(0), full_matrices=False)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    variance = values**2 / (len(rows) - 1)
    return {
        "mean": mean,
        "std": std,
        "components": axes[:count],
        "explained_variance": variance,
    }


@pytest.mark.parametrize("part", [300, 7, 1])
def test_the_fit_is_that_of_the_published_code(methods: Any, part: int) -> None:
    golden = methods.below("redi.pca.")
    found = fitted(golden["tokens"], 8, part)
    assert tuple(found) == STATISTICS
    for name, values in found.items():
        assert_close(values, golden[name], rtol=1e-5, atol=2e-6, msg=name)
    tokens = methods["redi.in.target_tokens"]
    assert_close(projected(tokens, golden), golden["projected"], rtol=1e-5, atol=1e-6)
    # The published statistics were fitted in float32.
    assert_close(projected(tokens, found), golden["projected"], rtol=1e-5, atol=5e-5)


def test_the_fit_does_not_suffer_from_means_that_dwarf_deviations() -> None:
    rows = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)).double()
    rows = rows @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]).double())
    near, far = fitted(rows, 5, 64), fitted(rows + 1e6, 5, 64)
    assert_close(far["std"], near["std"], rtol=1e-6, atol=0)
    assert_close(far["components"], near["components"], rtol=1e-4, atol=1e-5)


def test_a_feature_that_never_changes_has_no_part_in_the_components() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rows[:, 1] = 7.3
    found = fitted(rows, 2, 9)
    assert found["std"][1] == 1
    assert found["components"][:, 1].abs().max() < 1e-9


@pytest.fixture
def copied(built: Path, tmp_path: Path, tiny: Callable[..., Config]) -> Callable[..., Config]:
    """The tiny configuration with components, over a finished cache of its own without them."""
    shutil.rmtree(tmp_path / "images")
    shutil.copytree(built / "images", tmp_path / "images")
    shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr")
    path = tmp_path / "pipeline.toml"
    path.write_text(path.read_text() + SECTION)
    return tiny


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of all images that are opened from here on."""
    rows: list[int] = []
    real = CropReader._decoded_crop

    def crop(self: CropReader, row: int) -> object:
        rows.append(row)
        return real(self, row)

    monkeypatch.setattr(CropReader, "_decoded_crop", crop)
    return rows


def built_by(config: Config, options: BuildOptions | None = None) -> BuildSummary:
    return build(config.encode, CPU, options)


def statistics(config: Config, name: str = COLUMN) -> dict[str, np.ndarray]:
    return dict(Cache(config.cache.path).column(name).column.constants)


def is_sound(config: Config) -> bool:
    return find_faults(config.cache.path, threads=1) == []


def test_components_are_made_of_tokens_and_no_image_is_opened(
    copied: Callable[..., Config], opened: list[int]
) -> None:
    config = copied()
    made = built_by(config)
    assert (opened, made.counts.shards, made.missing) == ([], 3, 0)
    cache = Cache(config.cache.path)
    source, column = cache.column(ENCODER), cache.column(COLUMN, verify=True)
    tokens = source.values("tokens", range(21))
    expected = plain_fit(tokens.reshape(-1, tokens.shape[-1]), 4)
    constants = column.column.constants
    for name in ("mean", "std"):
        np.testing.assert_allclose(constants[name], expected[name], rtol=1e-5, atol=1e-6)
    axes = expected["components"]
    np.testing.assert_allclose(np.abs(constants["components"] @ axes.T), np.eye(4), atol=1e-4)
    stored = column.values("tokens", range(21))
    plain = ((tokens - expected["mean"]) / expected["std"]) @ constants["components"].T
    np.testing.assert_allclose(stored, plain, rtol=2e-3, atol=2e-3)
    recipe = column.column.recipe
    assert recipe["source"] == ENCODER
    assert recipe["source_fingerprint"] == source.column.fingerprint
    assert set(recipe["constants"]) == set(STATISTICS)  # type: ignore[arg-type]
    assert is_sound(config)
    assert built_by(config).counts.shards == 0


def test_the_sample_is_drawn_by_the_seed(copied: Callable[..., Config]) -> None:
    found = []
    for seed in (0, 1, 0):
        config = copied("components.pca4.sample_rows=5", f"components.pca4.seed={seed}")
        built_by(config, BuildOptions(rebuild=frozenset({COLUMN})))
        found.append(statistics(config)["mean"])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_statistics_stay_when_images_are_added_or_change(
    copied: Callable[..., Config], opened: list[int]
) -> None:
    config = copied()
    built_by(config)
    before, tokens = statistics(config), Cache(config.cache.path).column(COLUMN)
    old = tokens.values("tokens", range(21))
    images = config.dataset.path
    assert images is not None
    save_jpeg(images / "class0/added.jpg", seed=1)
    assert built_by(config).added == 1
    assert len(opened) == 1
    column = Cache(config.cache.path).column(COLUMN, verify=True)
    np.testing.assert_array_equal(column.values("tokens", range(21)), old)
    save_jpeg(images / "class1/3.jpg", seed=2)
    built_by(config, BuildOptions(update=True))
    column = Cache(config.cache.path).column(COLUMN, verify=True)
    assert (column.values("tokens", range(21)) != old).any(axis=(1, 2)).sum() == 1
    for name, values in statistics(config).items():
        np.testing.assert_array_equal(values, before[name])
    assert is_sound(config)


def test_other_settings_are_refused_before_anything_is_written(
    copied: Callable[..., Config],
) -> None:
    config = copied()
    built_by(config)
    before = content(config.cache.path)
    with pytest.raises(StaleCacheError, match=r"components: cache 4, configuration 3"):
        built_by(copied("components.pca4.count=3"))
    with pytest.raises(EncoderError, match=r"components\.pca4\.count: .* features, got 99999"):
        built_by(copied("components.pca4.count=99999"))
    assert content(config.cache.path) == before
    with pytest.raises(ConfigError, match=r"components\.pca4\.encoder: 'lite0' has no section"):
        copied("components.pca4.encoder=lite0")


def test_components_are_stale_once_their_source_is_another(copied: Callable[..., Config]) -> None:
    built_by(copied())
    int8 = copied("encoders.efficientnet-lite0.storage=int8")
    rebuild = find_columns(int8.encode, ["efficientnet-lite0"])
    assert rebuild == {ENCODER, COLUMN}
    with pytest.raises(StaleCacheError, match="source_fingerprint"):
        built_by(int8, BuildOptions(rebuild=frozenset({ENCODER})))
    with pytest.raises(StaleCacheError, match=f"it was made of {ENCODER} as that was once"):
        Cache(int8.cache.path).column(COLUMN)
    (fault,) = find_faults(int8.cache.path, threads=1)
    assert (fault.where, fault.remedy) == (COLUMN, Remedy.REBUILD)
    assert built_by(int8, BuildOptions(rebuild=rebuild)).counts.shards == 6
    cache = Cache(int8.cache.path)
    fingerprint = cache.column(ENCODER).column.fingerprint
    assert cache.column(COLUMN).column.recipe["source_fingerprint"] == fingerprint
    assert is_sound(int8)
    # Without its source, nothing of it is another.
    shutil.rmtree(int8.cache.path / ENCODER)
    assert is_sound(int8)
    assert Cache(int8.cache.path).column(COLUMN).read("tokens", [0]).any()


@pytest.mark.parametrize("damaged", ["tokens/c.1.0.0", "components/c/0/0", "zarr.json"])
def test_what_is_damaged_is_made_again_from_tokens(
    copied: Callable[..., Config], opened: list[int], damaged: str
) -> None:
    config = copied()
    built_by(config)
    before = content(config.cache.path)
    path = config.cache.path / COLUMN / damaged
    if damaged == "zarr.json":
        path.write_text("{}")
    else:
        flip(path, 50)
    assert not is_sound(config)
    built_by(config, BuildOptions(repair=True))
    after = content(config.cache.path)
    assert {name for name in before if before[name] != after[name]} <= {f"{COLUMN}/zarr.json"}
    assert opened == []
    assert is_sound(config)


def test_mirrored_images_share_the_statistics(tiny: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(path.read_text() + SECTION)
    config = tiny("dataset.flip=true")
    built_by(config)
    plain, mirrored = statistics(config), statistics(config, f"{COLUMN}.flipped")
    for name, values in plain.items():
        np.testing.assert_array_equal(mirrored[name], values)
    column = Cache(config.cache.path).column(f"{COLUMN}.flipped").column
    assert column.recipe["source"] == f"{ENCODER}.flipped"
    assert is_sound(config)


def test_part_of_a_build_leaves_components_for_later(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    path = tmp_path / "pipeline.toml"
    path.write_text(path.read_text() + SECTION)
    config = tiny()
    made = built_by(config, BuildOptions(shards=slice(2)))
    assert (made.counts.shards, made.missing) == (4, 5)
    assert built_by(config).missing == 0


@pytest.mark.slow
def test_workers_make_the_same_bytes(copied: Callable[..., Config]) -> None:
    alone, shared = copied(), copied("cache.path=shared.zarr")
    shutil.copytree(alone.cache.path, shared.cache.path)
    built_by(alone)
    made = built_by(shared, BuildOptions(cluster=Cluster(workers=2)))
    assert made.counts.shards == 3
    assert content(shared.cache.path) == content(alone.cache.path)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from cache import ledger
from pipeline.config import load_config
from stages.encode.build import build
real, seen = ledger.record, []
def record(column, *rest):
    seen.append(column.name)
    if seen.count("features/pca4") == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(column, *rest)
ledger.record = record
build(load_config(Path("pipeline.toml")).encode, torch.device("cpu"))
"""


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(copied: Callable[..., Config]) -> None:
    killed, whole = copied(), copied("cache.path=whole.zarr")
    shutil.copytree(killed.cache.path, whole.cache.path)
    built_by(whole)
    for number in (1, 2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(number)], check=False)
        assert done.returncode == -signal.SIGKILL
    assert built_by(killed).counts.shards == 2
    assert content(killed.cache.path) == content(whole.cache.path)


def test_fidelity_makes_components_anew(copied: Callable[..., Config]) -> None:
    config = copied()
    built_by(config)
    found = {one.array: one for one in measure_fidelity(config.encode, 6, CPU)}
    assert found[f"{COLUMN}/tokens"].minimum > 0.9999


def test_a_name_that_an_encoder_has_is_refused(tmp_path: Path, tiny_vae: Path) -> None:
    write_images(tmp_path / "images", classes=1, each=1)
    path = tmp_path / "pipeline.toml"
    path.write_text(TINY.format(vae=tiny_vae) + SECTION.replace("pca4", "efficientnet-lite0"))
    with pytest.raises(ConfigError, match=r"\[encoders.efficientnet-lite0\] has that name"):
        load_config(path)
