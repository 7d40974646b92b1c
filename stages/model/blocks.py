"""The parts of a transformer and its projectors, by the names of published checkpoints.

B images, T tokens, W the transformer's width, C latent channels, h and w the latent's sides.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 256


class PatchEmbedding(nn.Module):
    """Latents [B, C, h, w] to tokens [B, T, W], row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        tokens: Tensor = self.proj(latents).flatten(2).transpose(1, 2)
        # Every block hands this layout on. From the transposed one, the compiler of torch 2.13
        # makes code for CPUs that gives wrong gradients.
        return tokens.contiguous()


def time_frequencies(device: torch.device) -> Tensor:
    """The frequencies of the sinusoids of a time, float32 [128]: each has a cosine and a sine."""
    half = FREQUENCIES // 2
    exponents = torch.arange(half, dtype=torch.float32, device=device) / half
    return torch.exp(-math.log(10_000) * exponents)


class TimeEmbedding(nn.Module):
    """Times [B] to [B, W]: sinusoids of 256 frequencies, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = time.float()[:, None] * time_frequencies(time.device)
        embedding: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedding


class LabelEmbedding(nn.Module):
    """Labels [B] to [B, W]; the null class, where there is one, is the last row."""

    def __init__(self, classes: int, width: int, has_null_class: bool) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + int(has_null_class), width)

    def forward(self, labels: Tensor) -> Tensor:
        embedding: Tensor = self.embedding_table(labels)
        return embedding


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, T, W].

    qk_norm: whether queries and keys are normalised in each head; fused: whether it is one
    kernel, which never holds the matrix of attention.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2)
        )
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        attend = F.scaled_dot_product_attention if self.fused else plain_attention
        output: Tensor = self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        return output


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention from its definition; all are [B, heads, T, W / heads]."""
    similarity = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return similarity.softmax(dim=-1) @ value


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return output


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens [B, T, W] by the condition's [B, W] (adaLN)."""
    return tokens * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block with adaLN-Zero (DiT, section 3.2)."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, fused_attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm=qk_norm, fused=fused_attention)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            condition
        ).chunk(6, dim=1)
        attended = self.attn(modulate(self.norm1(tokens), shift_attn, scale_attn))
        tokens = tokens + gate_attn[:, None] * attended
        transformed = self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))
        output: Tensor = tokens + gate_mlp[:, None] * transformed
        return output


class FinalLayer(nn.Module):
    """Tokens [B, T, W] to patches [B, T, patch * patch * C].

    class_features: D of a class token in front of them, which becomes [B, D]; 0 for none.
    """

    def __init__(self, width: int, outputs: int, class_features: int = 0) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.linear_cls = nn.Linear(width, class_features) if class_features else None
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        modulated = modulate(self.norm_final(tokens), shift, scale)
        if self.linear_cls is None:
            return self.linear(modulated), None
        return self.linear(modulated[:, 1:]), self.linear_cls(modulated[:, 0])


class MLPProjector(nn.Sequential):
    """Three linear layers with SiLU between them, applied to each token (REPA, section 3.2)."""

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, features),
        )

    # The compiler takes up functions of this project only, and passes over those of torch.nn.
    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self:
            tokens = layer(tokens)
        return tokens
