"""Published files of weights, as the tensors of the vision network in them by name."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.encode.encoders import EncoderError

# Under these names training checkpoints keep the network beside the optimiser: of I-JEPA, whose
# target encoder is not the one that is published as its result; of MAE; of most others.
PARTS = ("encoder", "model", "state_dict")

# How torn files and files of other kinds fail.
READING_ERRORS = (
    OSError,
    RuntimeError,
    LookupError,
    EOFError,
    TypeError,
    ValueError,
    SafetensorError,
)

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
    try:
        state = _network(_read(path))
    except UnpicklingError as error:
        raise _refusal(path, error) from error
    except READING_ERRORS as error:
        raise EncoderError(
            f"{path} cannot be read as weights: it is torn, or of another kind ({error})."
        ) from error
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(sorted(map(str, state))[:8]) or "nothing"
        raise EncoderError(f"{path} holds other weights: no tensors of a network, {held} instead.")
    return _without_moco_v3_s_names(tensors)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if _is_torchscript(path):
        with warnings.catch_warnings():
            # There is no other reader for these files.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated")
            return torch.jit.load(path, map_location="cpu").state_dict()
    # A namespace of arguments lies in many checkpoints and runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        # Of a checkpoint ten times the size of its network only what is used is read.
        is_mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


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


def _refusal(path: Path, error: UnpicklingError) -> EncoderError:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted is None:
        return EncoderError(f"{path} cannot be read as weights: it is torn, or of another kind.")
    return EncoderError(
        f"{path} is refused: to unpickle it would run code of {wanted[1]}. If you trust its "
        "authors, load it with torch.load(..., weights_only=False), and save its tensors alone "
        "with safetensors.torch.save_file."
    )
