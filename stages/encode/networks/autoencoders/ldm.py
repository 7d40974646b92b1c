"""Files of autoencoders in the format of LDM's code: as VA-VAE, IN-VAE, MAR and EQ-VAE have them.

Their names become those of diffusers' AutoencoderKL, whose configuration the tensors tell. The
converter of diffusers does not know attention inside of levels, as VA-VAE has it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cache.recipe import RecipeValue
from stages.encode.networks.autoencoders import AutoencoderError
from stages.latents import DEVIATIONS, MEANS
from stages.weight_files import read_weight_file, reading

State = Mapping[str, Tensor]
# Where checkpoints of training have the network.
PARTS = ("state_dict", "model")
# What such checkpoints hold beside it: networks that VA-VAE was trained with.
TRAINED_WITH = ("foundation_model.", "linear_proj.", "loss.")
OWN = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# Of all LDM's autoencoders.
NORM_GROUPS = 32

# Names within a level, whose number the sides count in opposite directions.
LEVEL = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(.+)")
WITHIN_LEVEL = (
    (re.compile(r"block\.(\d+)\.(.+)"), r"resnets.\1.\2"),
    (re.compile(r"attn\.(\d+)\.(.+)"), r"attentions.\1.\2"),
    (re.compile(r"(down|up)sample\.(.+)"), r"\1samplers.0.\2"),
)
BESIDE_LEVELS = (
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\."), ".mid_block.attentions.0."),
)
SHORTCUT = (re.compile(r"\.nin_shortcut\."), ".conv_shortcut.")
IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a file's autoencoder. Raises AutoencoderError if it holds none.

    How latents are scaled is not in such files: `scaling_factor` is None.
    """
    return _config_of(_read(path), path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file's autoencoder by diffusers' names. Raises AutoencoderError."""
    state = _read(path)
    levels = _levels(state, "encoder.down")
    return dict(_converted(name, tensor, levels) for name, tensor in state.items())


def _read(path: Path) -> dict[str, Tensor]:
    with reading(path, AutoencoderError):
        content = read_weight_file(path)
        if not isinstance(content, Mapping):
            raise TypeError(f"it holds one {type(content).__name__}")
    for part in PARTS:
        if isinstance(content.get(part), Mapping):
            content = content[part]
    state = {name: one for name, one in content.items() if not name.startswith(TRAINED_WITH)}
    if strange := [name for name in state if not name.startswith(OWN)]:
        raise AutoencoderError(
            f"{len(strange)} tensors in it are of no autoencoder of LDM, {strange[0]} among them",
            where=path,
        )
    if any(".down_blocks." in name for name in state):
        raise AutoencoderError(
            "its tensors have diffusers' names", where=path, remedy="Name the folder that it is in."
        )
    return state


def read_statistics(path: Path) -> dict[str, RecipeValue]:
    """Mean and deviation of each channel of latents, [C], as they are published beside weights.

    Raises AutoencoderError if the file has neither VA-VAE's names nor REPA-E's.
    """
    with reading(path, AutoencoderError):
        found = read_weight_file(path)
        if "latents_bias" in found:
            mean, deviation = found["latents_bias"], 1 / found["latents_scale"]
        else:
            mean, deviation = found["mean"], found["std"]
        return {MEANS: mean.flatten().tolist(), DEVIATIONS: deviation.flatten().tolist()}


def _levels(state: State, prefix: str) -> int:
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _config_of(state: State, path: Path) -> dict[str, Any]:
    levels = _levels(state, "encoder.down")
    needed = ["encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight"]
    needed += [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels or 1)]
    if lacking := [name for name in needed if name not in state]:
        raise AutoencoderError(
            f"it is no autoencoder of LDM: it has no {lacking[0]}, but "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}",
            where=path,
        )

    def has_attention(prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.attn.") for name in state)

    down = ["AttnDown" if has_attention(f"encoder.down.{i}") else "Down" for i in range(levels)]
    up = ["AttnUp" if has_attention(f"decoder.up.{i}") else "Up" for i in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": [f"{kind}EncoderBlock2D" for kind in down],
        "up_block_types": [f"{kind}DecoderBlock2D" for kind in reversed(up)],
        "block_out_channels": [
            len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)
        ],
        "layers_per_block": _levels(state, "encoder.down.0.block"),
        "latent_channels": len(state["encoder.conv_out.weight"]) // 2,
        "norm_num_groups": NORM_GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "scaling_factor": None,
    }


def _converted(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    """A tensor by diffusers' name."""
    if match := LEVEL.match(name):
        side, level, rest = match[1], int(match[2]), match[3]
        for pattern, new in WITHIN_LEVEL:
            rest = pattern.sub(new, rest)
        blocks = f"down_blocks.{level}" if side == "encoder" else f"up_blocks.{levels - 1 - level}"
        name = f"{side}.{blocks}.{rest}"
    for pattern, new in (*BESIDE_LEVELS, SHORTCUT):
        name = pattern.sub(new, name)
    if match := re.fullmatch(r"(.+\.attentions\.\d+)\.(\w+)\.(weight|bias)", name):
        is_product = match[2] != "norm" and match[3] == "weight"
        # Their products are written as convolutions of one place.
        tensor = tensor.flatten(1) if is_product else tensor
        name = f"{match[1]}.{IN_ATTENTION[match[2]]}.{match[3]}"
    return name, tensor
