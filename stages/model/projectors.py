"""Modules from hidden tokens to an encoder's, by iREPA's names, and to those of another block.

B images, T tokens on a square grid of h x w, W the transformer's width, D an encoder's features.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stages.model.blocks import MLPProjector

# The side of the kernel that iREPA's paper has.
KERNEL = 3


class MLPProjection(nn.Module):
    """REPA's projector under the name that iREPA's code gives it."""

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__()
        self.projection_layer = MLPProjector(width, hidden, features)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.projection_layer(tokens)
        return projected


class PredictionHead(nn.Sequential):
    """Hidden tokens of a block to those of another, [B, T, W] both (SRA, section 3)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    # The compiler takes up functions of this project only, as in MLPProjector.
    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self:
            tokens = layer(tokens)
        return tokens


class ConvProjection(nn.Module):
    """One convolution over the grid of tokens, [B, T, W] to [B, T, D] (iREPA, section 4).

    kernel: its side, 1 or 3; None for 3, or that of the weights that it is given. It starts as
    PyTorch has it.
    """

    def __init__(self, width: int, features: int, kernel: int | None = None) -> None:
        super().__init__()
        self._takes_any_kernel = kernel is None
        self.projection_layer = _convolution(width, features, kernel or KERNEL)
        self.register_load_state_dict_pre_hook(_adopt_kernel)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        projected: Tensor = self.projection_layer(grid).flatten(2).transpose(1, 2)
        # In a layout from which compiled code gives the right gradients, as in PatchEmbedding.
        return projected.contiguous()

    def adopt_kernel(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Take over the kernel's side of weights, if it may be any. prefix: of its own names."""
        weight, own = state.get(f"{prefix}projection_layer.weight"), self.projection_layer
        if not self._takes_any_kernel or weight is None:
            return
        *others, kernel, _ = weight.shape
        if others == [own.out_channels, own.in_channels] and kernel != own.kernel_size[0]:
            made = _convolution(own.in_channels, own.out_channels, kernel)
            self.projection_layer = made.to(own.weight)


def _convolution(width: int, features: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, features, kernel, padding=kernel // 2)


def _adopt_kernel(module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    assert isinstance(module, ConvProjection)
    module.adopt_kernel(state, prefix)
