"""pipeline.toml as one frozen, validated Config."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cache.stores.places import Place
from pipeline.contradictions import contradictions
from pipeline.exits import ConfigError
from pipeline.required_files import EVERYTHING, Need
from pipeline.setting_errors import error_lines
from pipeline.toml_documents import copy_value, dates, override, read_document
from stages.encode import build_settings, network_settings
from stages.evaluate.evaluate_settings import EvaluateSettings
from stages.sample.sample_settings import AnySampling, SampleSettings
from stages.setting_types import Settings
from stages.train.former_settings import lines_instead
from stages.train.train_settings import CachedTensors, TrainSettings

# Of a picture of samples of prompts.
MOST_COLUMNS = 8


class Config(Settings):
    """The whole of pipeline.toml."""

    dataset: build_settings.AnyDataset
    """The images that are encoded, each once."""
    cache: build_settings.CacheSettings
    latents: network_settings.LatentsSettings = network_settings.LatentsSettings()
    encoders: network_settings.Encoders = Field(default_factory=dict)
    """Frozen encoders, a section each, by names of the registry or of timm, or of your own. Each is
    built once and shared by every run."""
    texts: network_settings.Texts = Field(default_factory=dict)
    """Frozen text encoders, a section each, by names of your own or of known models, which make
    the tokens that an MMDiT reads of the captions of images."""
    components: network_settings.Components = Field(default_factory=dict)
    """Principal components of cached tokens, a section each, by names of your own: as ReDi diffuses
    along with latents. They are made of the tokens alone and named like an encoder in
    `[[train.align]]`."""
    build: build_settings.BuildSettings = build_settings.BuildSettings()
    train: TrainSettings
    sample: AnySampling = SampleSettings()
    """What is drawn from a model, how, and what is written. The defaults are the paper's."""
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def tensors(self) -> CachedTensors:
        """What stage two reads of the cache."""
        text = self.train.text if self.train.reads_text else None
        return CachedTensors(
            self.cache.path, self.latents.column, self.dataset.flip, text, self.latents.scaling
        )

    @property
    def decoder(self) -> network_settings.LatentsSettings:
        """The VAE that decodes samples."""
        return self.sample.decoder(self.latents)

    def drawing(self, prompts: Sequence[str], each: int) -> "Config":
        """The same, which draws so many images of each of some prompts."""
        columns = min(len(prompts), MOST_COLUMNS)
        images = len(prompts) * each
        update = {"images": images, "grid": (-(-images // columns), columns)}
        return self.model_copy(update={"sample": self.sample.model_copy(update=update)})

    @property
    def encode(self) -> build_settings.EncodeSettings:
        """The part that stage one reads."""
        return build_settings.EncodeSettings(
            dataset=self.dataset,
            cache=self.cache,
            latents=self.latents,
            encoders=self.encoders,
            components=self.components,
            texts=self.texts,
            build=self.build,
        )


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    world: int = 1,
    needs: Collection[Need] = EVERYTHING,
    typed: Path = Path(),
) -> Config:
    """Read and check a configuration file.

    overrides: `section.key=value`, as on the command line; world: number of processes that
    will train; needs: what has to be there; typed: the folder that paths in overrides are
    relative to. Raises ConfigError with every error at once.
    """
    config = validated(read_document(path), overrides, path, path.parent, typed)
    return checked(config, path, world, needs)


def checked(
    config: Config, path: Path, world: int = 1, needs: Collection[Need] = EVERYTHING
) -> Config:
    """A configuration that does not contradict itself. path: where it is from.

    Raises ConfigError for one that does.
    """
    if problems := list(contradictions(config, world, needs)):
        raise config_error(path, problems)
    return config


def validated(
    document: dict[str, Any],
    overrides: Sequence[str],
    path: Place,
    folder: Path | None,
    typed: Path = Path(),
) -> Config:
    """The configuration in a document, each setting valid by itself.

    overrides: to be put into the document; path: where the document is from; folder: that paths
    in it are relative to, or None to take them as they are; typed: that those in overrides are,
    by default where the command is typed. Raises ConfigError.
    """
    keys = [override(document, text) for text in overrides]
    config = _parsed(document, path, folder)
    if not keys:
        return config
    settings, as_typed = (c.model_dump() for c in (config, _parsed(document, path, typed)))
    for key in keys:
        copy_value(as_typed, settings, key)
    return Config.model_validate(settings)


def _parsed(document: dict[str, Any], path: Place, folder: Path | None) -> Config:
    """A document's settings, with paths relative to a folder, or as they are."""
    if problems := [*dates(document), *_former_keys(document)]:
        raise config_error(path, problems)
    try:
        # JSON keeps the strict types of TOML, and has paths as strings and tuples as arrays.
        context = None if folder is None else {"folder": folder}
        return Config.model_validate_json(json.dumps(document), context=context)
    except ValidationError as error:
        raise config_error(path, error_lines(error, Config, document)) from None


def _former_keys(document: dict[str, Any]) -> Iterator[str]:
    """What is to be written instead of the keys that `[train]` once had."""
    train = document.get("train")
    if isinstance(train, dict) and (lines := lines_instead(train)):
        yield lines


def config_error(path: Place, problems: Sequence[str]) -> ConfigError:
    """The error of a configuration at a path. problems: a line for each."""
    listing = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{path} cannot be used:\n{listing}")
