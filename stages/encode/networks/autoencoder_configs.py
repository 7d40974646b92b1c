"""Configurations of autoencoders: where they are, the shapes they tell, and how latents are scaled.

C latent channels, h and w the latent's sides.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.recipe import RecipeValue
from stages.encode.network_settings import LatentsSettings
from stages.encode.networks.autoencoder_files import (
    HUB_CONFIGS,
    HUB_SHAPES,
    is_hub_file,
    is_weight_file,
    local_config,
    whole_config,
)
from stages.encode.networks.autoencoders import AutoencoderError, family_of, kind_of
from stages.encode.networks.autoencoders.ldm import read_statistics
from stages.latents import EXACT, FACTOR, MOMENTS, SHIFT

Config = Mapping[str, Any]

# The files of an autoencoder in the diffusers format, under either of their names.
CONFIG = ("config.json",)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def autoencoder_scaling(latents: LatentsSettings) -> dict[str, RecipeValue]:
    """How the latents of an autoencoder are scaled, from its configuration alone.

    Raises AutoencoderError if that cannot be read.
    """
    location = latents.location
    _, config = whole_config(_read_config(location), location)
    return scaling_recipe(config, told_of(latents))


def stored_shape(location: str, side: int) -> tuple[str, tuple[int, int, int]]:
    """The array that holds latents of an image of `side` px, and its shape, by configuration alone.

    Raises AutoencoderError if that cannot be read.
    """
    family, config = whole_config(shapes(location), location)
    place = side // family.downsampling(config)
    channels = family.channels(config)
    if family.has_posterior:
        return MOMENTS, (2 * channels, place, place)
    return EXACT, (channels, place, place)


def scaling_recipe(config: Config, told: Mapping[str, RecipeValue]) -> dict[str, RecipeValue]:
    """config: whole."""
    family = family_of(config, "")
    own = {"model": kind_of(config), "latent_channels": family.channels(config)}
    return {**own, **family.scaling(config), **told}


def shapes(location: str) -> Config:
    """A configuration by which shapes are right; of its scaling that may be missing."""
    return HUB_SHAPES[location] if location in HUB_SHAPES else _read_config(location)


def _read_config(location: str) -> Config:
    """The configuration of an autoencoder of the hub, of a local folder, or of a file."""
    if location in HUB_CONFIGS:
        return HUB_CONFIGS[location]
    return checked_config(located(location, CONFIG))


def checked_config(location: Path) -> Config:
    """The configuration in a local folder or file. Raises AutoencoderError if there is none."""
    try:
        return local_config(location)
    except AutoencoderError as error:
        raise AutoencoderError(f"latents.vae: {error}.") from error


def told_of(latents: LatentsSettings) -> dict[str, RecipeValue]:
    """What of the scaling is not left to the autoencoder's configuration.

    Raises AutoencoderError if the file of statistics cannot be read.
    """
    if latents.statistics is None:
        factor = latents.scaling_factor
        return {} if factor is None else {FACTOR: factor, SHIFT: 0.0}
    statistics = read_statistics(located(latents.statistics, setting="latents.statistics"))
    return {**statistics, FACTOR: latents.scaling_factor or 1.0, SHIFT: 0.0}


def located(location: str, *files: Sequence[str], setting: str = "latents.vae") -> Path:
    """A local folder or file, or what stands for it in the hub's cache.

    files: of a repository that is a folder; setting: that names it. Raises AutoencoderError.
    """
    if is_weight_file(location) and is_hub_file(location):
        repository, _, name = location.rpartition("/")
        return _fetched(repository, (name,), setting=setting) / name
    if Path(location).is_dir() or is_weight_file(location):
        return Path(location)
    return _fetched(location, *files, setting=setting)


def _fetched(location: str, *files: Sequence[str], setting: str) -> Path:
    from stages.encode.networks.hub import (  # half a second: only where one is loaded
        HubError,
        fetch,
    )

    try:
        return fetch(location, *files)
    except HubError as error:
        name = Path(location).name
        told = error.told(
            f"Where there is no network, set {setting} to a folder that diffusers saved, as "
            f"./{name}, with these files"
        )
        raise AutoencoderError(f"{setting}: cannot load {location!r}: {told}") from error
