"""Configurations that a run keeps, and that a cache tells, without a pipeline.toml."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.layout import FLIPPED
from pipeline.config import Config, ConfigError
from pipeline.report.records import ReportError
from pipeline.required_files import NEEDS
from pipeline.stored_configs import cache_config, run_config
from stages.encode.building.recipes import declared_recipes
from stages.weights.run_folder import config_path


@pytest.fixture
def kept(tiny: Callable[..., Config]) -> Callable[..., Path]:
    """Writes a run's folder with a configuration, changed by section and key, without images."""

    def write(folder: Path, *overrides: str, **changes: Any) -> Path:
        document = tiny(*overrides).model_dump(mode="json")
        for section, values in changes.items():
            document[section].update(values)
        folder.mkdir(parents=True, exist_ok=True)
        config_path(folder).write_text(json.dumps(document))
        return folder

    return write


def test_the_configuration_of_a_run_is_that_of_its_training(
    kept: Callable[..., Path], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    run = kept(tmp_path / "run", "train.betas=[0.8, 0.9]", "sample.guidance=1.5")
    assert run_config(run) == tiny(
        f"train.run={run}", "train.betas=[0.8, 0.9]", "sample.guidance=1.5"
    )


def test_what_a_run_names_is_found_where_both_have_moved(
    kept: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(tmp_path / "moved/runs/x", cache={"path": "tiny.zarr"}, dataset={"path": "images"})
    (tmp_path / "moved/tiny.zarr").mkdir()
    monkeypatch.chdir(tmp_path / "moved/runs")
    config = run_config(Path("x"), needs=())
    assert config.train.run == Path("x")
    assert config.cache.path == tmp_path / "moved/tiny.zarr"
    # The images of the old place lie above, too.
    assert config.dataset.path == tmp_path / "images"
    assert run == tmp_path / "moved/runs/x"


def test_settings_are_changed_with_paths_from_where_the_command_is_typed(
    kept: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = kept(tmp_path / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = run_config(run, ["sample.steps=50", "cache.path=other.zarr"], needs=())
    assert (config.sample.steps, config.cache.path) == (50, Path("other.zarr"))
    with pytest.raises(ConfigError, match=r"sample\.stepps: unknown key; did you mean 'steps'"):
        run_config(run, ["sample.stepps=50"], needs=())


def test_nothing_is_expanded_in_the_paths_of_runs_and_caches(
    kept: Callable[..., Path], built: Path, tmp_path: Path
) -> None:
    run = kept(tmp_path / "$5 off", cache={"path": "/data/$NAME.zarr"})
    config = run_config(run, ["sample.steps=50"], needs=())
    assert (config.train.run, config.sample.steps) == (run, 50)
    assert config.cache.path == Path("/data/$NAME.zarr")
    cache = Path(shutil.copytree(built / "tiny.zarr", tmp_path / "$NAME.zarr"))
    found = cache_config(cache, ["train.batch_size=4"])
    assert (found.cache.path, found.train.batch_size) == (cache, 4)


def test_nothing_is_expanded_in_the_addresses_that_a_run_keeps(
    kept: Callable[..., Path], tmp_path: Path
) -> None:
    cache, images = "s3://bucket/$NAME.zarr", "s3://bucket/$IMAGES"
    run = kept(tmp_path / "run", cache={"path": cache}, dataset={"path": images})
    for overrides in ([], ["sample.steps=50"]):
        config = run_config(run, overrides, needs=())
        assert (str(config.cache.path), str(config.dataset.path)) == (cache, images)


def test_a_run_of_before_some_settings_has_their_defaults(
    kept: Callable[..., Path], tmp_path: Path
) -> None:
    run = kept(tmp_path / "run")
    document = json.loads(config_path(run).read_text())
    del document["evaluate"], document["sample"]["guided_channels"], document["train"]["reading"]
    config_path(run).write_text(json.dumps(document))
    config = run_config(run, needs=())
    assert config.sample.guided_channels is None
    assert config.train.reading.threads == 8


def test_options_of_all_kinds_that_a_run_keeps_are_those_of_its_own(
    kept: Callable[..., Path], tmp_path: Path
) -> None:
    none = dict.fromkeys(("split", "image_column", "label_column"))
    run = kept(tmp_path / "run", dataset=none, sample={"tolerances": [1e-6, 1e-3]})
    assert run_config(run) == run_config(kept(tmp_path / "other"), [f"train.run={run}"])
    photographs = kept(
        tmp_path / "photographs", dataset={**none, "source": "sample-photos", "path": None}
    )
    assert run_config(photographs, needs=()).dataset.path is None
    adaptive = kept(tmp_path / "adaptive", sample={"solver": "dopri5", "tolerances": [0.5, 0.5]})
    assert run_config(adaptive).sample.model_dump()["tolerances"] == (0.5, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no .*config\.json"),
        ("{", r"config\.json is not valid JSON"),
        ("[]", r"config\.json holds no configuration"),
    ],
)
def test_a_configuration_that_cannot_be_read_says_why(
    kept: Callable[..., Path], tmp_path: Path, content: str | None, message: str
) -> None:
    run = kept(tmp_path / "run")
    (run / "log.jsonl").touch()
    config_path(run).unlink()
    if content is not None:
        config_path(run).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        run_config(run)
    assert "--config names another" in str(caught.value)


def test_a_setting_of_another_version_is_named(kept: Callable[..., Path], tmp_path: Path) -> None:
    run = kept(tmp_path / "run", train={"magic": 1})
    with pytest.raises(ConfigError) as caught:
        run_config(run)
    said = str(caught.value)
    assert f"{config_path(run)} cannot be used:\n  train.magic: unknown key" in said
    assert "as the version of repa-cache that trained it wrote it" in said


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="There is no folder"):
        run_config(tmp_path / "none")


@pytest.mark.parametrize("flip", [False, True])
def test_a_cache_tells_how_it_was_made(
    built: Path, trainable: Callable[..., Config], tmp_path: Path, flip: bool
) -> None:
    cache = Path(shutil.copytree(built / "tiny.zarr", tmp_path / "runs-of/tiny.zarr"))
    if flip:
        for column in ("latents/tiny-vae", "features/efficientnet-lite0"):
            shutil.copytree(cache / column, cache / f"{column}{FLIPPED}")
    expected, found = trainable(), cache_config(cache)
    assert found.tensors.latents == expected.tensors.latents
    assert found.tensors.columns(found.train.encoders) == (
        trainable(f"dataset.flip={str(flip).lower()}").tensors.columns(["efficientnet-lite0"])
    )
    assert found.cache == expected.cache.model_copy(update={"path": cache})
    recipes = declared_recipes(found.encode)["latents/tiny-vae"]
    assert recipes == declared_recipes(expected.encode)["latents/tiny-vae"]
    assert found.train.run.parent == cache.parent


def test_a_damaged_cache_tells_what_is_left(built: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(built / "tiny.zarr", tmp_path / "tiny.zarr"))
    (cache / "latents/tiny-vae/zarr.json").write_text("{")
    assert cache_config(cache).dataset.resolution == 32
    (cache / "features/efficientnet-lite0/zarr.json").write_text("{")
    assert cache_config(cache, ["dataset.resolution=64"]).dataset.resolution == 64


def elsewhere(config: str, *lines: tuple[str, str]) -> str:
    for old, new in lines:
        assert old in config
        config = config.replace(old, new)
    return config


def test_no_command_asks_for_files_that_it_does_not_read(
    tiny: Callable[..., Config], images: Path
) -> None:
    """A pipeline.toml alone, as on another machine."""
    tiny()
    path = images.parent / "pipeline.toml"
    text = path.read_text()
    vae = text.partition('vae = "')[2].partition('"')[0]
    path.write_text(
        elsewhere(
            text,
            ('path = "images"', 'path = "gone"'),
            (f'vae = "{vae}"', 'vae = "/gone/vae"'),
            ("input_size = 64", 'input_size = 64\nweights = "gone.pth"'),
            ("metrics = []", 'metrics = ["fid"]\nreference = "gone.npz"'),
        )
        + 'inception_weights = "gone.pth"\n'
    )
    asked = {
        "images": "dataset.path: there is no folder",
        "vae": "latents.vae: there is no folder",
        "weights": "encoders.efficientnet-lite0.weights: there is no file",
        "decoder": "sample.vae: there is no folder",
        "reference": "evaluate.reference: there is no file",
        "inception": "evaluate.inception_weights: there is no file",
    }
    expected: dict[str, set[str]] = {
        "plan": {"vae"},
        "build": {"images", "vae", "weights"},
        "train": set(),
        "sample": {"decoder"},
        "evaluate": {"reference", "inception", "weights"},
        "run": set(asked),
        **{name: set() for name in ("inspect", "verify", "bench", "export", "report")},
    }
    for command, names in expected.items():
        assert refused(path, command) == {asked[name] for name in names}, command
    assert refused(path, "train", "train.grid_every=2") == {asked["decoder"]}
    nothing = ("evaluate.metrics=[]", "evaluate.frechet_encoders=[]")
    assert refused(path, "evaluate", *nothing) == set()


def refused(path: Path, command: str, *overrides: str) -> set[str]:
    """What a command says is not there, without the names."""
    from pipeline.config import load_config

    try:
        load_config(path, overrides, needs=NEEDS.get(command, frozenset()))
    except ConfigError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        return {line.rpartition(" ")[0] for line in lines}
    return set()
