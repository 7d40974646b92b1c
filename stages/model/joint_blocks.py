"""Blocks of an MMDiT (arXiv 2403.03206): a caption and an image, which attend to each other.

Parameter names are those of REPA's code. B images, T tokens of an image, X of a caption, W the
transformer's width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.attention import Attention, make_norm, plain_attention
from stages.model.blocks import FEED_FORWARD, Layers, modulate


class Stream(nn.Module):
    """What is a stream's own in a block: norms, modulation, queries, keys and values, and an MLP.

    ends: whether nobody sees its tokens behind the block, which then has no more than others attend
    to.
    """

    def __init__(self, width: int, heads: int, layers: Layers, *, ends: bool = False) -> None:
        super().__init__()
        self.norm1 = make_norm(layers.norm, width)
        norm = layers.norm if layers.qk_norm else None
        self.attn = Attention(width, heads, norm=norm, projects=not ends)
        self.parts = 2 if ends else 6
        if not ends:
            self.norm2 = make_norm(layers.norm, width)
            self.mlp = FEED_FORWARD[layers.mlp](width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.parts * width))

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention and of the MLP, each [B, 1, W], of a condition [B, W].

        Of a stream that ends, only the first two.
        """
        return self.adaLN_modulation(condition)[:, None].chunk(self.parts, dim=2)  # type: ignore[no-any-return]

    def heads(self, tokens: Tensor, made: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, heads, T, W / heads]. made: the modulation."""
        return self.attn.parts(modulate(self.norm1(tokens), made[0], made[1]))

    def behind(self, tokens: Tensor, attended: Tensor, made: tuple[Tensor, ...]) -> Tensor:
        """The tokens behind the block. attended: [B, heads, T, W / heads]."""
        _, _, gate_attn, shift_mlp, scale_mlp, gate_mlp = made
        tokens = tokens + gate_attn * self.attn.proj(attended.transpose(1, 2).flatten(2))
        transformed = self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))
        output: Tensor = tokens + gate_mlp * transformed
        return output


class JointBlock(nn.Module):
    """One attention over the tokens of caption and image, and all else for each of the two.

    is_last: whether the caption is not seen behind it.
    """

    def __init__(
        self, width: int, heads: int, layers: Layers, *, fused_attention: bool, is_last: bool
    ) -> None:
        super().__init__()
        self.fused = fused_attention
        self.is_last = is_last
        self.context_block = Stream(width, heads, layers, ends=is_last)
        self.x_block = Stream(width, heads, layers)

    def forward(
        self, tokens: Tensor, condition: Tensor, context: Tensor, seen: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, W] of images and [B, X, W] of captions behind it.

        condition: [B, W]; seen: which tokens, those of captions first, are attended to, bool [B, 1,
        1, X + T]; by default all.
        """
        streams = self.context_block, self.x_block
        made = [stream.modulation(condition) for stream in streams]
        pairs = zip(streams, (context, tokens), made, strict=True)
        heads = [stream.heads(own, modulation) for stream, own, modulation in pairs]
        query, key, value = (torch.cat(parts, dim=2) for parts in zip(*heads, strict=True))
        attend = F.scaled_dot_product_attention if self.fused else plain_attention
        attended = attend(query, key, value, seen).split([context.shape[1], tokens.shape[1]], dim=2)
        tokens = self.x_block.behind(tokens, attended[1], made[1])
        if not self.is_last:
            context = self.context_block.behind(context, attended[0], made[0])
        return tokens, context
