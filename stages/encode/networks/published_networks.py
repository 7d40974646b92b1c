"""Published files of weights, as the tensors of the vision network in them by name."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.encode.networks.registry import EncoderError
from stages.weight_files import read_weight_file, reading

# Under these names training checkpoints keep the network beside the optimiser: of I-JEPA, whose
# target encoder is not the one that is published as its result; of MAE; of most others.
PARTS = ("encoder", "model", "state_dict")

# MoCo v3 trains two encoders, and gives the trained one a projection head.
MOCO_PREFIX = "base_encoder."
MOCO_HEADS = ("head.", "fc.")
# The published ViT-L counts its layers where others write 1 and 2.
MOCO_MISNAMED = {
    "blocks.13.norm13.": "blocks.13.norm1.",
    "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
    "blocks.14.norm14.": "blocks.14.norm2.",
    "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a file's vision network, under its authors' or timm's names.

    The file is in the format of safetensors, of `torch.save`, or of TorchScript (OpenAI's CLIP).
    Raises EncoderError if it is torn, holds no tensors, or could run code when it is unpickled.
    """
    with reading(path, EncoderError):
        state = _network(_read(path))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(sorted(map(str, state))[:8]) or "nothing"
        raise EncoderError(f"{path} holds other weights: no tensors of a network, {held} instead.")
    return _without_moco_v3_s_names(tensors)


def _read(path: Path) -> Any:
    if not _is_torchscript(path):
        return read_weight_file(path)
    with warnings.catch_warnings():
        # There is no other reader for these files.
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated")
        return torch.jit.load(path, map_location="cpu").state_dict()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _network(checkpoint: Any) -> dict[str, Any]:
    """The part of a checkpoint that is the network, without the prefix of parallel training."""
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"it holds one {type(checkpoint).__name__}")
    for part in PARTS:
        if isinstance(checkpoint.get(part), Mapping):
            return _network(checkpoint[part])
    return {str(name).removeprefix("module."): value for name, value in checkpoint.items()}


def _without_moco_v3_s_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(name.startswith(MOCO_PREFIX) for name in state):
        return state
    encoder = {}
    for name, tensor in state.items():
        own = name.removeprefix(MOCO_PREFIX)
        if own != name and not own.startswith(MOCO_HEADS):
            for wrong, right in MOCO_MISNAMED.items():
                own = own.replace(wrong, right)
            encoder[own] = tensor
    return encoder
