"""What a command needs of packages and of a cache's columns with a configuration."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from cache.captions import CAPTIONS, located
from cache.layout import FEATURES
from cache.metadata import check_fields, has_column, read_column, root_attributes
from cache.rows import count_rows
from pipeline.config import Config
from stages.encode.building.recipes import declared_recipes
from stages.encode.images.sources import SOURCES
from stages.encode.network_settings import EncoderSettings
from stages.encode.networks.registry import EncoderError
from stages.encode.networks.text_models import package_of
from stages.latents import LatentScaling, scaling_of
from stages.packages import OPTIONAL, is_installed, needs
from stages.sample.solvers import SOLVERS, find_solver

# What needs a package, and the name that it is imported by.
Use = tuple[str, str | None]


def missing_packages(command: str, config: Config) -> Iterator[str]:
    """A line for each package that is not installed."""
    told: set[str] = set()
    for uses in USES.get(command, ()):
        for subject, module in uses(config):
            if module is not None and module not in told and not is_installed(module):
                told.add(module)
                yield f"{subject} {needs(module)}"


def _images(config: Config) -> Iterator[Use]:
    dataset = config.dataset
    # A build may go on from the crops that it keeps.
    if not (dataset.pixels and config.cache.path.is_dir()):
        yield f"dataset.source: {dataset.source!r}", SOURCES[dataset.source].package


def _encoders(config: Config) -> Iterator[Use]:
    for name in config.encoders:
        for package in _packages(config, name):
            yield f"encoders.{name}:", package


def _texts(config: Config) -> Iterator[Use]:
    encoded = ((name, own) for name, own in config.texts.items() if not own.imported)
    for name, own in encoded:
        yield f"texts.{name}:", "transformers"
        yield f"texts.{name}:", package_of(own.location(name))


def _prompts(config: Config) -> Iterator[Use]:
    if config.train.reads_text and config.sample.prompts:
        yield from _texts(config)


def _judges(config: Config) -> Iterator[Use]:
    if config.evaluate.clip_model is not None:
        yield "evaluate.clip_model:", "transformers"
    for name in config.evaluate.frechet_encoders:
        for package in _packages(config, name):
            yield f"evaluate.frechet_encoders: {name!r}", package


def _logs(config: Config) -> Iterator[Use]:
    for name in ("tensorboard", "wandb"):
        if getattr(config.train, name):
            yield f"train.{name}:", name


def _products(config: Config) -> Iterator[Use]:
    if config.train.precision == "float8":
        yield "train.precision: 'float8'", "torchao"


def _solver(config: Config) -> Iterator[Use]:
    name = find_solver(config.sample.solver, config.train.family)
    yield f"sample.solver: {name!r}", SOLVERS[name].package


def _grids(config: Config) -> Iterator[Use]:
    if config.train.grid_every:
        yield from _solver(config)


def _packages(config: Config, encoder: str) -> Iterator[str]:
    """The package that an encoder comes from, and the one that holds its weights."""
    own = config.encoders.get(encoder, EncoderSettings())
    if own.library in OPTIONAL:
        yield own.library
    with suppress(EncoderError):
        packaged = config.encode.spec(encoder).packaged
        if packaged is not None and own.weights is None:
            yield packaged[0]


USES: Mapping[str, tuple[Callable[[Config], Iterator[Use]], ...]] = {
    "build": (_images, _encoders, _texts),
    "train": (_products, _logs, _grids),
    "sample": (_solver, _prompts),
    "evaluate": (_judges,),
    "run": (_images, _encoders, _texts, _products, _logs, _solver, _judges),
}


def used_columns(config: Config) -> list[str]:
    """The names of those that the configured run reads."""
    names = [name for views in config.tensors.columns(config.train.encoders) for name in views]
    text = config.tensors.text
    return [*names, *([] if text is None else [f"{CAPTIONS}/{FEATURES}{text}"])]


def own_scaling(config: Config) -> LatentScaling | None:
    """The scaling of the latents of the configured run, where it is by channels."""
    path, tensors = config.cache.path, config.tensors
    found = scaling_of(read_column(path, tensors.latents, count_rows(path)), tensors.scaling)
    return None if found.rule == "factor" else found


def check_columns(config: Config) -> None:
    """Raise StaleCacheError if one of them is not what this configuration would build.

    Weights are compared by `build`, which loads the networks.
    """
    root_attributes(config.cache.path)
    declared = declared_recipes(config.encode)
    for name in used_columns(config):
        path, own = located(config.cache.path, name)
        if has_column(path, own):
            check_fields(read_column(path, own, count_rows(path)), declared[name])
