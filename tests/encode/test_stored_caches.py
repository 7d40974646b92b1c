"""A cache that an earlier version wrote is the one that today's version would build."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from places import ROOT
from typer.testing import CliRunner

from cache.errors import StaleCacheError
from cache.metadata import read_group
from cache.reader import Cache
from cache.recipe import DECLARED_DEFAULTS, fingerprint, recipe_differences
from cache.rows import read_rows
from pipeline.commands import app
from pipeline.config import Config, load_config
from stages.encode.build import build
from stages.encode.building import recipes
from stages.encode.building.columns import Maker, load_makers
from stages.encode.building.recipes import declared_recipes
from stages.encode.networks.registry import EncoderSpec

CPU = torch.device("cpu")
LATENTS, FEATURES, PIXELS = (
    "latents/demo-autoencoder",
    "features/efficientnet-lite0",
    "pixels/crops",
)
FINGERPRINTS = {
    LATENTS: "2f42bf1e8db51f63997fb76d80f5df345180e248aea7942f547728081be72f8c",
    FEATURES: "3677760733efd44d828908dbb2e28f6a4be38ac9dbdf318637d48303ce20f54b",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration of a cache that is stored with the tests, with its images beside it."""
    with tarfile.open(ROOT / "tests" / "stored" / "before.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pipeline.toml"
    encoding, _, _ = path.read_text().partition("[train]")
    path.write_text(f'{encoding}\n[train]\nrun = "run"\n')
    return load_config(path)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def changes(config: Config) -> dict[str, list[str]]:
    """How the columns of the cache differ from those of the configuration, where they do."""
    recipes = {
        name: (read_group(config.cache.path / name)["recipe"], wanted)
        for name, wanted in declared_recipes(config.encode).items()
    }
    changed = {
        name: recipe_differences(found, {**found, **wanted})
        for name, (found, wanted) in recipes.items()
    }
    return {name: lines for name, lines in changed.items() if lines}


def files(folder: Path) -> dict[str, bytes]:
    """The contents of all files but the row table's stamps, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parts[len(folder.parts)] != "rows"
    }


def test_a_build_finds_everything_up_to_date_and_every_byte_is_as_it_was_written(
    config: Config,
) -> None:
    before = files(config.cache.path)
    assert f"{len(read_rows(config.cache.path))} rows; nothing was missing" in invoke("build")
    assert files(config.cache.path) == before
    invoke("verify")
    cache = Cache(config.cache.path)
    for name, stored in FINGERPRINTS.items():
        assert cache.column(name).column.fingerprint == stored


def test_a_cache_that_is_built_anew_has_the_recipes_and_fingerprints_that_were_stored(
    config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "anew.zarr"
    cache = config.cache.model_copy(update={"path": path})
    build(config.encode.model_copy(update={"cache": cache}), CPU)
    for name in (LATENTS, FEATURES, PIXELS):
        found, stored = (read_group(folder / name) for folder in (path, config.cache.path))
        for field in ("arrays", "recipe", "fingerprint"):
            assert json.dumps(found[field]) == json.dumps(stored[field]), (name, field)


@pytest.mark.parametrize(
    ("constant", "field", "stale"),
    [
        ("CROP_VERSION", "recipe_version", {LATENTS, FEATURES, PIXELS}),
        ("AUTOENCODER_VERSION", "autoencoder_version", {LATENTS}),
        ("ENCODER_VERSION", "encoder_version", {FEATURES}),
    ],
)
def test_another_version_of_a_maker_makes_its_columns_stale_and_no_others(
    constant: str, field: str, stale: set[str], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = getattr(recipes, constant)
    monkeypatch.setattr(recipes, constant, version + 1)
    line = f"{field}: cache {version}, configuration {version + 1}"
    assert changes(config) == {column: [line] for column in stale}
    with pytest.raises(StaleCacheError, match=line):
        build(config.encode, CPU)


@pytest.fixture
def dithered(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives recipes of encoders a field that no cache had before, declared to be `none` there."""
    monkeypatch.setitem(DECLARED_DEFAULTS, "dither", "none")
    recipe = EncoderSpec.recipe

    def give(value: str) -> None:
        monkeypatch.setattr(
            EncoderSpec, "recipe", lambda self, size: recipe(self, size) | {"dither": value}
        )

    return give


def makers(config: Config) -> dict[str, Maker]:
    return {maker.column: maker for maker in load_makers(config.encode, CPU, untrained=True)}


def test_a_new_field_with_its_declared_default_leaves_columns_as_they_are(
    config: Config, dithered: Callable[[str], None]
) -> None:
    before = fingerprint(makers(config)[FEATURES].recipe)
    dithered("none")
    assert makers(config)[FEATURES].recipe["dither"] == "none"
    assert fingerprint(makers(config)[FEATURES].recipe) == before
    assert changes(config) == {}
    assert "nothing was missing" in invoke("build")


def test_a_new_field_with_another_value_makes_just_the_columns_stale_that_have_it(
    config: Config, dithered: Callable[[str], None]
) -> None:
    dithered("blue")
    line = 'dither: cache "none", configuration "blue"'
    assert changes(config) == {FEATURES: [line]}
    with pytest.raises(StaleCacheError, match=rf"efficientnet-lite0: it was .* \({line}\)"):
        build(config.encode, CPU)


def test_a_column_that_was_made_with_another_value_is_stale_for_the_default(
    config: Config, dithered: Callable[[str], None], tmp_path: Path
) -> None:
    dithered("blue")
    cache = config.cache.model_copy(update={"path": tmp_path / "blue.zarr"})
    blue = config.model_copy(update={"cache": cache})
    build(blue.encode, CPU)
    assert changes(blue) == {}
    dithered("none")
    assert changes(blue) == {FEATURES: ['dither: cache "blue", configuration "none"']}
