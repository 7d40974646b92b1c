"""pipeline.toml as one frozen, validated Config."""

import json
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from cache.errors import RepaCacheError
from pipeline.contradictions import contradictions
from pipeline.needs import EVERYTHING, Need
from stages.encode.settings import (
    BuildSettings,
    CacheSettings,
    DatasetSettings,
    EncoderName,
    EncoderSettings,
    EncodeSettings,
    LatentsSettings,
)
from stages.sample.settings import EvaluateSettings, SampleSettings
from stages.settings import Settings, nearest
from stages.train.settings import CachedTensors, TrainSettings


class ConfigError(RepaCacheError):
    """Everything that is wrong with a configuration, a line each."""


class Config(Settings):
    """The whole of pipeline.toml."""

    dataset: DatasetSettings
    cache: CacheSettings
    latents: LatentsSettings = LatentsSettings()
    encoders: dict[EncoderName, EncoderSettings] = Field(default_factory=dict)
    build: BuildSettings = BuildSettings()
    train: TrainSettings
    sample: SampleSettings = SampleSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def tensors(self) -> CachedTensors:
        """What stage two reads of the cache."""
        return CachedTensors(self.cache.path, self.latents.column, self.dataset.flip)

    @property
    def decoder(self) -> LatentsSettings:
        """The VAE that decodes samples."""
        return self.sample.decoder(self.latents)

    @property
    def encode(self) -> EncodeSettings:
        """The part that stage one reads."""
        return EncodeSettings(
            dataset=self.dataset,
            cache=self.cache,
            latents=self.latents,
            encoders=self.encoders,
            build=self.build,
        )


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    world: int = 1,
    needs: Collection[Need] = EVERYTHING,
) -> Config:
    """Read and check a configuration file.

    overrides: `section.key=value`, as on the command line; world: number of processes that
    will train; needs: what has to be there. Raises ConfigError with every error at once.
    """
    return checked(validated(_read(path), overrides, path, path.parent), path, world, needs)


def checked(
    config: Config, path: Path, world: int = 1, needs: Collection[Need] = EVERYTHING
) -> Config:
    """A configuration that does not contradict itself. path: where it is from.

    Raises ConfigError for one that does.
    """
    if problems := list(contradictions(config, world, needs)):
        raise _config_error(path, problems)
    return config


def validated(
    document: dict[str, Any], overrides: Sequence[str], path: Path, folder: Path | None
) -> Config:
    """The configuration in a document, each setting valid by itself.

    overrides: to be put into the document; path: where that is from; folder: that relative paths
    in it are relative to, or None to leave them as they are. Raises ConfigError.
    """
    for override in overrides:
        _override(document, override)
    try:
        # JSON keeps the strict types of TOML, and has paths as strings and tuples as arrays.
        content = json.dumps(document, default=str)
        context = None if folder is None else {"folder": folder}
        return Config.model_validate_json(content, context=context)
    except ValidationError as error:
        raise _config_error(path, [_line(problem) for problem in error.errors()]) from None


def _config_error(path: Path, problems: Sequence[str]) -> ConfigError:
    listing = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{path} cannot be used:\n{listing}")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {path}. Write one with `repa-cache init`, or name it with --config."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, key = _keys(name)
    if not equals or not sections:
        raise ConfigError(f"--set {override}: expected section.key=value.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table: Any = document
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section} is no section.")
    table[key] = value


def _keys(name: str) -> list[str]:
    """The keys of a dotted name; one that has dots itself stands in quotes, as in TOML."""
    try:
        table: Any = tomllib.loads(f"{name} = 0")
    except tomllib.TOMLDecodeError:
        return name.split(".")
    keys = []
    while isinstance(table, dict):
        ((key, table),) = table.items()
        keys.append(key)
    return keys


def _line(problem: Any) -> str:
    """One line for one of pydantic's errors: where, what, and the nearest valid name."""
    where = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        *parents, key = problem["loc"]
        return f"{where}: unknown key; {nearest(str(key), _fields(parents))}"
    if problem["type"] == "missing":
        return f"{where}: required, but not given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}"


def _fields(parents: Sequence[str | int]) -> list[str]:
    """The keys that the section at a path takes."""
    section: type[BaseModel] = Config
    for parent in parents:
        if section is Config and parent == "encoders":
            section = EncoderSettings
        elif parent in section.model_fields:
            annotation = section.model_fields[str(parent)].annotation
            section = annotation if isinstance(annotation, type) else section
    return list(section.model_fields)
