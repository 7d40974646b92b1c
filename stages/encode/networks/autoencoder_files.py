"""What is known of an autoencoder without loading it: from its folder or file, or by its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.encode.networks.autoencoders import AutoencoderError, Family, family_of

KIND = "AutoencoderKL"
# Of files of LDM.
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")

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
# VA-VAE, which attends in the lowest level of either side.
VA_VAE: Mapping[str, Any] = {
    "_class_name": KIND,
    "down_block_types": [*["DownEncoderBlock2D"] * 4, "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 4],
    "block_out_channels": [128, 128, 256, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 32,
}
DC_AE: Mapping[str, Any] = {"_class_name": "AutoencoderDC"}
# By name, those of which shapes are known, and not how they are scaled.
HUB_SHAPES: Mapping[str, Mapping[str, Any]] = {
    **HUB_CONFIGS,
    "hustvl/vavae-imagenet256-f16d32-dinov2/vavae-imagenet256-f16d32-dinov2.pt": VA_VAE,
    "REPA-E/e2e-vavae-hf": VA_VAE,
    "REPA-E/e2e-invae-hf": VA_VAE,
    "REPA-E/e2e-sdvae-hf": SD_VAE,
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": DC_AE,
    "mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers": DC_AE,
    "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers": DC_AE,
    "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers": DC_AE,
}


def read_vae_config(folder: Path) -> dict[str, Any]:
    """The configuration of an autoencoder in the diffusers format.

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
    family_of(config, str(folder))
    return dict(config)


def local_config(location: Path) -> dict[str, Any]:
    """The configuration of an autoencoder in a folder of diffusers, or in a file of LDM.

    Raises AutoencoderError if there is none.
    """
    if location.is_dir():
        return read_vae_config(location)
    from stages.encode.networks.autoencoders.ldm import read_config

    return read_config(location)


def is_weight_file(location: str) -> bool:
    """Whether a location names a file of weights rather than a folder or a hub name."""
    return location.endswith(FILE_SUFFIXES)


def is_hub_file(location: str) -> bool:
    """Whether a location names a file of a repository on the hub."""
    return location.count("/") == 2 and not location.startswith(("/", ".", "~", "$"))


def whole_config(config: Mapping[str, Any], location: str) -> tuple[Family, Mapping[str, Any]]:
    """The family of an autoencoder, and its configuration with what it leaves out."""
    family = family_of(config, location)
    return family, family.whole(config)
