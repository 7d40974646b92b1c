"""Uniform numbers, made of the standard normals that terms draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def uniform(normals: Tensor) -> Tensor:
    """Numbers from 0 to 1 for standard normals, of the same shape; float32 also reaches 1."""
    import torch

    numbers: Tensor = torch.special.ndtr(normals)
    return numbers
