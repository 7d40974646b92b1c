"""PixelREPA's masked transformer adapter (arXiv 2603.14366), under the names of its code.

B images, T tokens, K tokens of a class, W the model's width, D an encoder's features.
"""

import torch
from torch import Tensor, nn

from stages.model.attention import turned_by_place
from stages.model.blocks import Block, LabelEmbedding, Layers, TimeEmbedding
from stages.model.conditions import Condition
from stages.model.transformer_config import TransformerConfig


class Head(nn.Module):
    """Tokens [B, T, W] to [B, T, D]."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, features)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.mlp(tokens)
        return projected


class MaskedAdapter(nn.Module):
    """Hidden tokens of a JiT [B, T, W], some of them masked, to an encoder's [B, T, D].

    An encoder as wide as the model is compared with the last block's output itself: the published
    code then has a head that nothing uses, and here there is none.
    """

    def __init__(self, config: TransformerConfig, blocks: int, features: int) -> None:
        super().__init__()
        width = config.width
        self._heads, self._grid, self._front = config.heads, config.grid, config.label_tokens
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(config.classes, width, config.has_null_class)
        self.in_context_posemb = nn.Parameter(torch.empty(1, config.label_tokens, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        layers = Layers(config.norm, config.mlp, config.qk_norm)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, layers, fused_attention=True, is_first=False)
            for _ in range(blocks)
        )
        self.projection_layer = None if features == width else Head(width, features)
        for parameter in (self.in_context_posemb, self.mask_token):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, masked: Tensor, time: Tensor, given: Condition) -> Tensor:
        """masked: bool [B, T]; time: [B]; given: what the model is told of the images."""
        tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        label = self.y_embedder(given)
        condition = self.t_embedder(time) + label
        front = label[:, None] + self.in_context_posemb
        # K tokens of the class in front of those of patches.
        tokens = torch.cat([front, tokens], dim=1)
        features = tokens.shape[-1] // self._heads
        rotation = turned_by_place(features, self._grid, self._front, tokens.device)
        for block in self.blocks:
            tokens, _ = block(tokens, condition, rotation)
        tokens = tokens[:, self._front :]
        return tokens if self.projection_layer is None else self.projection_layer(tokens)
