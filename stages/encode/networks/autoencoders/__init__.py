"""The families of autoencoders, one for each of diffusers' classes; nothing heavy is imported."""

from collections.abc import Mapping
from typing import Any

from cache.errors import RepaCacheError
from stages.encode.networks.autoencoders.compressing import DeepCompression, Tiny
from stages.encode.networks.autoencoders.family import Family as Family
from stages.encode.networks.autoencoders.flux import Folded
from stages.encode.networks.autoencoders.kl import Variational
from stages.encode.networks.autoencoders.representation import Representation
from stages.encode.networks.autoencoders.video import Video

FAMILIES: Mapping[str, Family] = {
    "AutoencoderKL": Variational(),
    "AutoencoderKLFlux2": Folded(),
    "AutoencoderKLQwenImage": Video(),
    "AutoencoderKLWan": Video(),
    "AutoencoderDC": DeepCompression(),
    "AutoencoderTiny": Tiny(),
    "AutoencoderRAE": Representation(),
}
USUAL = "AutoencoderKL"


class AutoencoderError(RepaCacheError):
    """The autoencoder cannot be loaded."""


def kind_of(config: Mapping[str, Any]) -> str:
    """Diffusers' class that a configuration is of."""
    return str(config.get("_class_name", USUAL))


def family_of(config: Mapping[str, Any], location: str) -> Family:
    """What is known of the kind of autoencoder that a configuration is of.

    location: of the configuration, for the message. Raises AutoencoderError if it is of none.
    """
    kind = kind_of(config)
    if kind not in FAMILIES:
        raise AutoencoderError(f"{location} holds a {kind}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[kind]
