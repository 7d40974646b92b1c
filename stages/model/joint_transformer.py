"""MMDiT: a transformer on latent patches that reads captions, as REPA's code has it.

B images, T tokens, X tokens of a caption, E their features, W the model's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.conditions import Condition, Context
from stages.model.joint_blocks import JointBlock
from stages.model.transformer import Carried, Transformer, positions

if TYPE_CHECKING:
    from stages.model.blocks import Layers

# The side of the published table of positions, of whose middle smaller latents have theirs.
TABLE = 16


class JointTransformer(Transformer):
    """MMDiT. Captions are seen by joint attention alone; modulation is by time.

    It starts as PyTorch has it, and not from zeros where SiT does. Captions' tokens have no
    positions beside those that the text encoder gave them.
    """

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """Those of both streams, by the name that all transformers have."""
        return self.joint_blocks

    def _add_condition(self) -> None:
        self.context_embedder = nn.Linear(self.config.context_features, self.config.width)

    def _places(self) -> Tensor:
        width, grid = self.config.width, self.config.grid
        side = max(grid, TABLE)
        before = (side - grid) // 2
        middle = slice(before, before + grid)
        table = positions(width, side).unflatten(0, (side, side))
        places: Tensor = table[middle, middle].flatten(0, 1)
        return places

    def _add_blocks(self, layers: Layers, *, fused_attention: bool) -> None:
        config = self.config
        self.joint_blocks = nn.ModuleList(
            JointBlock(
                config.width,
                config.heads,
                layers,
                fused_attention=fused_attention,
                is_last=depth == config.depth - 1,
            )
            for depth in range(config.depth)
        )

    def _conditioned(self, time: Tensor, given: Condition) -> tuple[Tensor, Carried]:
        assert isinstance(given, Context), "an MMDiT reads captions"
        seen = given.seen
        if seen is not None:
            # All tokens of an image, behind those of its caption: bool [B, 1, 1, X + T].
            tokens = self.config.grid**2 + self.config.class_tokens
            seen = F.pad(seen, (0, tokens), value=True)[:, None, None]
        return time, (self.context_embedder(given.tokens), seen)

    def _carried(self, before: Carried, made: Any) -> Carried:
        return made, before[1]

    def _initialise(self) -> None:
        """Leave it as PyTorch has it."""
