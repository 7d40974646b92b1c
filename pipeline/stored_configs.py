"""Configurations without a pipeline.toml: the one that a run keeps, and what a cache tells."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cache.errors import DamagedCacheError
from cache.layout import FEATURES, FLIPPED, LATENTS, PIXELS
from cache.metadata import column_names, read_group, root_attributes, titles
from cache.stores.places import Place, StorePath, local_folder
from pipeline.config import Config, checked, validated
from pipeline.exits import ConfigError
from pipeline.report.records import check_run
from pipeline.required_files import EVERYTHING, Need
from stages.encode.images.remote.paths import RemotePath
from stages.encode.network_settings import DEMO_AUTOENCODER, PIXEL_SPACE
from stages.encode.networks.autoencoder_files import HUB_CONFIGS
from stages.setting_paths import as_written, literal
from stages.setting_types import Kinds, Settings, kinds_among
from stages.train.former_settings import in_todays_form
from stages.weights.run_folder import config_path, found_beside

KNOWN_VAES = (*HUB_CONFIGS, DEMO_AUTOENCODER)

Value = TypeVar("Value")


def run_config(
    run: Path, overrides: Sequence[str] = (), needs: Collection[Need] = EVERYTHING
) -> Config:
    """The configuration that a run keeps, which may have moved together with what it names.

    overrides: `section.key=value`, with paths relative to the working folder; needs: what has to
    be there. Raises ReportError if the folder is no run, ConfigError if it keeps none that this
    version understands.
    """
    check_run(run)
    path = config_path(run)
    try:
        kept = validated(_of_own_kinds(_read(path)), (), path, folder=None)
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nIn that file a run keeps its configuration, as the version of repa-cache "
            "that trained it wrote it; --config names another."
        ) from None
    document = _located(kept, run).model_dump(mode="json")
    document["train"]["run"] = as_written(run)
    return checked(validated(document, overrides, path, Path()), path, needs=needs)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no {path}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no configuration: expected an object.")
    if isinstance(train := content.get("train"), dict):
        content["train"] = in_todays_form(train)
    return content


def _of_own_kinds(document: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without what sections say of other kinds than theirs.

    Versions that knew no kinds kept every option of every section.
    """
    found = {name: kinds_among(field.metadata) for name, field in Config.model_fields.items()}
    return {
        name: kinds.read_by(value)
        if isinstance(kinds := found.get(name), Kinds) and isinstance(value, dict)
        else value
        for name, value in document.items()
    }


def _located(value: Value, run: Path) -> Value:
    """Settings, with relative paths in them written as where these are found from a run."""
    if isinstance(value, Path):
        return Path(as_written(found_beside(run, value) or value))  # type: ignore[return-value]
    if isinstance(value, StorePath | RemotePath):
        return type(value)(as_written(value))
    if isinstance(value, Settings):
        fields = {name: _located(getattr(value, name), run) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {name: _located(one, run) for name, one in value.items()}  # type: ignore[return-value]
    return value


def cache_config(path: Place, overrides: Sequence[str] = ()) -> Config:
    """What a cache tells of how it was made, with defaults for all that it does not tell.

    Where the images are it does not tell, and encoders have no sections: no network is loaded
    by it. Raises NotACacheError if there is none, ConfigError for overrides that are not valid.
    """
    root, names = root_attributes(path), column_names(path)
    own = titles(names, LATENTS) or (["none"] if PIXELS not in names else [])
    folder = local_folder(path)
    vae = _vae_called(own[0], folder) if own else PIXEL_SPACE
    recipe = next(_recipes(path, names), {})
    runs = folder / "runs"
    document = {
        "dataset": {
            "source": "imagefolder",
            "resolution": recipe.get("resolution", 256),
            "flip": any(name.endswith(FLIPPED) for name in names),
            "pixels": PIXELS in names,
        },
        "cache": {
            "path": as_written(path),
            "rows_per_shard": root["rows_per_shard"],
            "seed": root["permutation_seed"],
        },
        "latents": {"vae": vae},
        "train": {
            "run": as_written((runs if runs.is_dir() else folder) / path.stem),
            "align": [{"kind": "repa", "encoder": encoder} for encoder in titles(names, FEATURES)],
        },
    }
    return validated(document, overrides, path, Path())


def _recipes(path: Place, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The recipes of columns, as far as they can be read."""
    for name in names:
        try:
            yield dict(read_group(path / name)["recipe"])
        except (DamagedCacheError, KeyError):
            continue


def _vae_called(name: str, folder: Path) -> str:
    """The VAE whose column has this name: a published one, or else one in a folder."""
    known = next((vae for vae in KNOWN_VAES if Path(vae).name == name), None)
    return known or literal(folder / name)
