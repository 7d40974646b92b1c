"""Which weights a network really has: a digest of its tensors."""

import hashlib

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of a model's tensors as loaded: names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
