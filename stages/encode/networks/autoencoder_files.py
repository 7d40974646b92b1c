"""What is known of an autoencoder without loading it: from its folder, or by its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.errors import RepaCacheError

KIND = "AutoencoderKL"

# SD-VAE, and those that have its shape.
SD_VAE: Mapping[str, Any] = {
    "_class_name": KIND,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
SDXL_VAE: Mapping[str, Any] = {**SD_VAE, "scaling_factor": 0.13025}
# By name, so that neither shapes nor scale need the hub.
HUB_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "stabilityai/sd-vae-ft-mse": SD_VAE,
    "stabilityai/sd-vae-ft-ema": SD_VAE,
    "stabilityai/sdxl-vae": SDXL_VAE,
    "madebyollin/sdxl-vae-fp16-fix": SDXL_VAE,
}


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
        config = json.loads((folder / "config.json").read_bytes())
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
