"""Which files a command reads: these have to be there, and no others."""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from cache.layout import FEATURES
from stages.encode.images.sources import SOURCES
from stages.encode.network_settings import EncoderSettings
from stages.encode.networks.registry import EncoderError

if TYPE_CHECKING:
    from pipeline.config import Config


class Need(Enum):
    """What a command reads beside run and cache.

    IMAGES: the data set; VAE: of the latents; ENCODERS: weights of those to be cached; DECODER:
    the VAE of samples; GRIDS: the same, if samples are drawn while training; JUDGES: what samples
    are measured with.
    """

    IMAGES = auto()
    VAE = auto()
    ENCODERS = auto()
    DECODER = auto()
    GRIDS = auto()
    JUDGES = auto()


EVERYTHING = frozenset(Need)
# Commands that are not named here read runs and caches alone.
NEEDS: Mapping[str, frozenset[Need]] = {
    # The VAE's configuration decides the shape of latents.
    "plan": frozenset({Need.VAE}),
    "build": frozenset({Need.IMAGES, Need.VAE, Need.ENCODERS}),
    "train": frozenset({Need.GRIDS}),
    "sample": frozenset({Need.DECODER}),
    "evaluate": frozenset({Need.JUDGES}),
    "run": EVERYTHING,
}


def missing_files(config: "Config", needs: Collection[Need]) -> Iterator[str]:
    """A line for each file or folder that is needed and not there."""
    if Need.IMAGES in needs:
        yield from _missing_images(config)
    if Need.VAE in needs and (problem := config.latents.problem):
        yield f"latents.vae: {problem}"
    if Need.ENCODERS in needs:
        for name in config.encoders:
            # Once it is cached, a build says by itself if it needs them again.
            if not (config.cache.path / FEATURES / name).is_dir():
                yield from _missing_weights(config, name)
    is_drawing = Need.GRIDS in needs and config.train.grid_every > 0
    if (Need.DECODER in needs or is_drawing) and (problem := config.decoder.problem):
        yield f"sample.vae: {problem}"
    if Need.JUDGES in needs:
        yield from _missing_judges(config)


def _missing_images(config: "Config") -> Iterator[str]:
    dataset = config.dataset
    # Once they are cached, a build says by itself if it needs them again.
    if not SOURCES[dataset.source].reads_folder or config.cache.path.is_dir():
        return
    # What an address tells, a build asks for when it needs it.
    if isinstance(dataset.path, Path) and not dataset.path.is_dir():
        yield f"dataset.path: there is no folder {dataset.path}"


def _missing_weights(config: "Config", name: str) -> Iterator[str]:
    weights = config.encoders.get(name, EncoderSettings()).weights
    if weights is not None and not weights.is_file():
        yield f"encoders.{name}.weights: there is no file {weights}"
    try:
        reason = config.encode.spec(name).unpublished
    except EncoderError as error:
        yield f"encoders.{name}: {error}"
    else:
        if weights is None and reason:
            yield f"encoders.{name}.weights: required; {reason}"


def _missing_judges(config: "Config") -> Iterator[str]:
    """What lacks of the reference, and of the networks that see samples and reference."""
    settings = config.evaluate
    has_inception = settings.metrics != ()
    paths = {
        "reference": settings.reference if has_inception or settings.frechet_encoders else None,
        "inception_weights": settings.inception_weights if has_inception else None,
    }
    for key, path in paths.items():
        if path is not None and not path.exists():
            yield f"evaluate.{key}: there is no file {path}"
    for name in settings.frechet_encoders:
        yield from _missing_weights(config, name)
