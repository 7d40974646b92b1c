"""Attention, norms and rotary positions, by the names of published checkpoints.

B images, T tokens, W the transformer's width.
"""

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What norms add to a variance or a mean square.
EPSILON = 1e-6
# Cosine and sine of the angles by which pairs of features are turned, each [T, features / 2].
Rotation: TypeAlias = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Tokens [..., W] over their root mean square (arXiv 1910.07467), in float32 throughout.

    affine: whether each of the W numbers has a weight of its own.
    """

    def __init__(self, width: int, *, affine: bool = True) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, tokens: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        return F.rms_norm(tokens.float(), (self.width,), weight, EPSILON)


def make_norm(kind: str, width: int) -> nn.Module:
    """The norm in front of a modulation, by a name of `stages.model.sizes`."""
    if kind == "layer":
        return nn.LayerNorm(width, elementwise_affine=False, eps=EPSILON)
    return RMSNorm(width, affine=kind == "rms-affine")


def make_affine_norm(kind: str, width: int, epsilon: float = EPSILON) -> nn.Module:
    """The norm of that kind where nothing modulates: with weights, and a layer norm with biases.

    epsilon: of a layer norm.
    """
    return nn.LayerNorm(width, eps=epsilon) if kind == "layer" else RMSNorm(width)


class Rotary(nn.Module):
    """Rotary positions of a grid's tokens (RoPE, arXiv 2104.09864), under published names.

    Of a head's features the first half is turned by a token's row, the second by its column, in
    pairs of neighbours; each pair has a frequency of its own. Both tables: [grid * grid, features].
    """

    def __init__(self, features: int, grid: int) -> None:
        super().__init__()
        pairs = torch.arange(features // 4, dtype=torch.float64) / (features // 4)
        angles = torch.arange(grid, dtype=torch.float64)[:, None] / 10_000**pairs
        axis = angles.repeat_interleave(2, dim=1)
        rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
        table = torch.cat([rows, columns], dim=2).flatten(0, 1)
        # Not trained, but parameters, as the fixed positions are: checkpoints hold them.
        self.freqs_cos = nn.Parameter(table.cos().float(), requires_grad=False)
        self.freqs_sin = nn.Parameter(table.sin().float(), requires_grad=False)

    def forward(self, class_tokens: int) -> Rotation:
        """Cosine and sine for each pair of each token, [T, features / 2].

        class_tokens: how many tokens stand in front of the grid's; they are not turned.
        """
        front = (0, 0, class_tokens, 0)
        cos, sin = self.freqs_cos[:, ::2], self.freqs_sin[:, ::2]
        return F.pad(cos, front, value=1.0), F.pad(sin, front)


def turned_by_place(features: int, grid: int, front: int, device: torch.device) -> Rotation:
    """The same without a table: cosine and sine for each pair of each token, [T, features / 2].

    front: how many tokens stand in front of the grid's; they are not turned.
    """
    pairs = torch.arange(features // 4, dtype=torch.float32, device=device) / (features // 4)
    angles = torch.arange(grid, dtype=torch.float32, device=device)[:, None] / 10_000**pairs
    rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
    table = F.pad(torch.cat([rows, columns], dim=2).flatten(0, 1), (0, 0, front, 0))
    return table.cos(), table.sin()


def make_dropout(probability: float) -> nn.Module:
    """Drops numbers with a probability, while it is trained."""
    return nn.Dropout(probability) if probability else nn.Identity()


def rotate(tokens: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys, [B, heads, T, features], turned by their positions."""
    cos, sin = rotation
    first, second = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, T, W].

    norm: of queries and keys in each head, by the model's kind, if they are normalised; fused:
    whether it is one kernel, which never holds the matrix of attention; mixes_values: whether the
    values of the first block are mixed into its own, which `v1_lambda` [1] weighs; projects:
    whether anybody sees its output; dropout: of its output.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        norm: str | None,
        fused: bool = True,
        mixes_values: bool = False,
        projects: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (
            make_affine_norm(norm, width // heads, epsilon=1e-5) if norm else nn.Identity()
            for _ in range(2)
        )
        if mixes_values:
            self.v1_lambda = nn.Parameter(torch.full((1,), 0.5))
        if projects:
            self.proj = nn.Linear(width, width)
        self.drop = make_dropout(dropout)

    def forward(
        self,
        tokens: Tensor,
        rotation: Rotation | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The output [B, T, W], and the values [B, heads, T, W / heads] before any mixing."""
        query, key, value = self.parts(tokens)
        own = value
        if first_values is not None:
            value = self.v1_lambda * first_values + (1 - self.v1_lambda) * value
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attend = F.scaled_dot_product_attention if self.fused else plain_attention
        output: Tensor = self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        return self.drop(output), own

    def parts(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, each [B, heads, T, W / heads]."""
        query, key, value = (
            part.transpose(1, 2)
            for part in self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)
        )
        return self.q_norm(query), self.k_norm(key), value


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Attention from its definition; all are [B, heads, T, W / heads].

    seen: which tokens are attended to, bool [B, 1, 1, T]; by default all.
    """
    similarity = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if seen is not None:
        similarity = similarity.masked_fill(~seen, -math.inf)
    return similarity.softmax(dim=-1) @ value
