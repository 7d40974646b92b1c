"""Tiny but real autoencoders of every family, of 32 px to 8 x 8 latents; LDM's golden ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY, write_images
from torch import Tensor

from pipeline.config import load_config
from stages import vision
from stages.encode.build import build

CHANNELS = 4
MEAN, STD = [0.1, -0.2, 0.3, 0.4], [0.5, 2.0, 1.0, 0.25]


def _kl(**more: Any) -> Any:
    return vision.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        mid_block_add_attention=False,
        **more,
    )


def _flux2() -> Any:
    model = vision.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    model.bn.running_mean.copy_(torch.randn(8) / 4)
    model.bn.running_var.copy_(torch.rand(8) + 0.5)
    return model


def _video(kind: str) -> Any:
    return getattr(vision, kind)(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=MEAN,
        latents_std=STD,
    )


def _dc() -> Any:
    sides: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sides[f"{side}_block_types"] = "ResBlock"
        sides[f"{side}_block_out_channels"] = (8, 8, 16)
        sides[f"{side}_layers_per_block"] = (1, 1, 1)
        sides[f"{side}_qkv_multiscales"] = ((), (), ())
    return vision.AutoencoderDC(
        latent_channels=8, attention_head_dim=8, scaling_factor=0.41407, **sides
    )


def _tiny() -> Any:
    return vision.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )


def _rae() -> Any:
    return vision.AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=14,
        encoder_num_hidden_layers=1,
        encoder_input_size=112,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        patch_size=4,
        latents_mean=torch.randn(64, 8, 8),
        latents_std=torch.rand(64, 8, 8) + 0.5,
    )


SPACES: dict[str, Callable[[], Any]] = {
    "channels": lambda: _kl(scaling_factor=1.0, latents_mean=MEAN, latents_std=STD),
    "qwen": lambda: _video("AutoencoderKLQwenImage"),
    "dc": _dc,
    "wan": lambda: _video("AutoencoderKLWan"),
    "flux2": _flux2,
    "taesd": _tiny,
    "rae": _rae,
}


def save_space(name: str, folder: Path) -> Any:
    """An autoencoder with random weights, saved into a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = SPACES[name]().eval()
    model.save_pretrained(folder)
    return model


def published(name: str, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [B, C, h, w], of what a diffusion model sees, as users of each write it.

    images: uint8 [B, 3, S, S]. The deviation is zero where there is no posterior.
    """
    inputs = images.float() / 127.5 - 1
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    if name == "dc":
        latents = model.encode(inputs).latent * 0.41407
        return latents, torch.zeros_like(latents)
    if name == "taesd":
        latents = model.encode(inputs).latents
        return latents, torch.zeros_like(latents)
    if name == "rae":
        latents = model.encode(images.float() / 255).latent
        return latents, torch.zeros_like(latents)
    if name == "channels":
        posterior = model.encode(inputs).latent_dist
        return (posterior.mean - mean) / std, posterior.std / std
    if name == "flux2":
        from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

        posterior = model.encode(inputs).latent_dist
        fold = Flux2Pipeline._patchify_latents
        deviation = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + 1e-4)
        shift = model.bn.running_mean.view(1, -1, 1, 1)
        return (fold(posterior.mean) - shift) / deviation, fold(posterior.std) / deviation
    posterior = model.encode(inputs.unsqueeze(2)).latent_dist
    return (posterior.mean.squeeze(2) - mean) / std, posterior.std.squeeze(2) / std


def pictures(name: str, model: Any, scaled: Tensor) -> Tensor:
    """Images between -1 and 1 of what a diffusion model made, as users of each decode it."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    if name == "dc":
        return model.decode(scaled / 0.41407).sample
    if name == "taesd":
        return model.decode(scaled).sample
    if name == "rae":
        return model.decode(scaled).sample * 2 - 1
    if name == "channels":
        return model.decode(scaled * std + mean).sample
    if name == "flux2":
        from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

        deviation = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + 1e-4)
        shift = model.bn.running_mean.view(1, -1, 1, 1)
        return model.decode(Flux2Pipeline._unpatchify_latents(scaled * deviation + shift)).sample
    return model.decode((scaled * std + mean).unsqueeze(2)).sample.squeeze(2)


def ldm_state(vavae: Any, name: str) -> dict[str, Tensor]:
    """The weights that the golden tensors were made with."""
    made = json.loads(vavae.metadata["config"])[name]
    source, state = np.random.RandomState(made["seed"]), {}
    for key, shape in sorted(made["shapes"].items()):
        values = source.standard_normal(shape)
        if len(shape) > 1:
            values = values * 0.8 / np.sqrt(np.prod(shape[1:]))
        else:
            values = 1 + 0.2 * values if key.endswith("weight") else 0.1 * values
        state[key] = torch.from_numpy(values).float()
    for key, (total, first) in made["weight_checks"].items():
        assert float(state[key].double().sum()) == pytest.approx(total)
        assert float(state[key].flatten()[0]) == pytest.approx(first)
    return state


def build_pixels(folder: Path) -> Path:
    """A finished cache of crops and of tokens of both views, and a JiT's configuration of it."""
    path = folder / "pipeline.toml"
    write_images(folder / "images")
    document = TINY.format(vae="pixels").replace("SiT-XS/2", "JiT-XS/8")
    path.write_text(document.replace("resolution = 32", "resolution = 32\nflip = true"))
    build(load_config(path).encode, torch.device("cpu"))
    return path
