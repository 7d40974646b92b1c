"""Frozen networks: their weights, whole and from any file, their precision, batches that fit.

B images.
"""

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from stages.encode.network_settings import Precision
from stages.encode.networks.registry import EncoderError
from stages.float32 import float32_products
from stages.progress import say
from stages.weight_files import read_weight_file, reading

Network: TypeAlias = Callable[[Tensor], Mapping[str, Tensor]]
State: TypeAlias = dict[str, Tensor]

# Beside what a network of half precision gives: for which images it is not finite.
OVERFLOWN = "overflown"
_notes_overflow: ContextVar[bool] = ContextVar("_notes_overflow", default=False)

# What stands for the digest of random weights, which no cached tensor is made with.
UNTRAINED = "untrained"
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


class FittingNetwork:
    """A network whose batches are halved for good when the device runs out of memory.

    network: images [B, ...] to tensors by name [B, ...]; name: for the message.
    """

    def __init__(self, name: str, network: Network) -> None:
        self._name = name
        self._network = network
        self._most: int | None = None

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """What the network gives for a batch. Raises torch.OutOfMemoryError if none fits."""
        while True:
            size = min(self._most or len(images), len(images))
            try:
                parts = [self._network(part) for part in images.split(size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            else:
                if len(parts) == 1:
                    return parts[0]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            self._most = (size + 1) // 2
            say(f"{self._name}: out of memory; {self._most} images at a time from here on")


def compute(network: Network, inputs: Tensor, precision: Precision) -> dict[str, Tensor]:
    """What a network gives for inputs [B, ...], as float32 tensors [B, ...] by name.

    With tf32, matrix products and convolutions are in TF32 on a GPU, and in float32 elsewhere.
    With float16 they are in half precision, and images whose results are not finite, because a
    value passed 65504 on the way, are computed again in float32; to know them, this waits for
    the device, unless the caller is `noting_overflow`.
    """
    with float32_products(tf32=precision == "tf32"):
        if precision != "float16":
            return _as_float32(network(inputs))
        with torch.autocast(inputs.device.type, torch.float16):
            outputs = _as_float32(network(inputs))
        finite = [tensor.isfinite().flatten(1).all(1) for tensor in outputs.values()]
        # [tensors, B] to [B]
        overflown = ~torch.stack(finite).all(0)
        if _notes_overflow.get():
            return {**outputs, OVERFLOWN: overflown}
        if overflown.any():
            for name, exact in _as_float32(network(inputs[overflown])).items():
                outputs[name][overflown] = exact
        return outputs


@contextmanager
def noting_overflow() -> Iterator[None]:
    """Have networks of half precision say which images they failed for, and not wait.

    What they give has a tensor `OVERFLOWN` beside the others, bool [B]. Who asked computes these
    images again, outside of this block.
    """
    before = _notes_overflow.set(True)
    try:
        yield
    finally:
        _notes_overflow.reset(before)


def _as_float32(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in outputs.items()}


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of a model's tensors as loaded: names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as they lie in memory."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def copy_state(network: nn.Module, state: State, path: Path) -> None:
    """Copy the tensors of a file to a network; every tensor of the network has to be among them.

    Raises EncoderError for one that is not, or that has another shape.
    """
    own = network.state_dict()
    if lacking := [name for name in own if name not in state]:
        raise EncoderError(
            f"{path} holds other weights: {len(lacking)} of {len(own)} tensors of the encoder are "
            f"not in it, {lacking[0]} among them."
        )
    for name in own:
        check_shape(name, state, own, path)
    network.load_state_dict({name: state[name] for name in own})


def check_shape(name: str, found: State, expected: State, path: Path) -> None:
    """Raise EncoderError unless a tensor of a file has the shape that a network expects."""
    if found[name].shape != expected[name].shape:
        raise EncoderError(
            f"{path} holds the weights of another network: {name} is "
            f"{list(found[name].shape)} there, expected {list(expected[name].shape)}."
        )


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
