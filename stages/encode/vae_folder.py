"""What a local folder says of the autoencoder in it, without loading anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import RepaCacheError

KIND = "AutoencoderKL"


class AutoencoderError(RepaCacheError):
    """The autoencoder cannot be loaded."""


def read_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of an AutoencoderKL in the diffusers format.

    Raises AutoencoderError if there is none, or that of another network.
    """
    if (folder / "model_index.json").is_file():
        raise AutoencoderError(
            f"{folder} holds a pipeline; name the autoencoder in it: {folder}/vae"
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise AutoencoderError(
            f"{folder} has no config.json; expected a folder that diffusers saved"
        ) from error
    except ValueError as error:
        raise AutoencoderError(f"{folder}/config.json is torn: {error}") from error
    check_is_autoencoder_kl(config, str(folder))
    return dict(config)


def check_is_autoencoder_kl(config: Mapping[str, Any], location: str) -> None:
    """Raise AutoencoderError if a configuration is that of another network.

    Likewise if its latents are scaled channel by channel, which training does not do.
    """
    if (kind := config.get("_class_name", KIND)) != KIND:
        raise AutoencoderError(f"{location} holds an {kind}, expected an {KIND}")
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise AutoencoderError(
            f"{location} has a mean and a deviation for each channel of its latents "
            "(latents_mean, latents_std); only one scale and shift for all is supported"
        )


def downsampling(config: Mapping[str, Any]) -> int:
    """Pixels per latent along a side: every block but the last halves it."""
    return 1 << (len(config.get("block_out_channels", [64])) - 1)
