"""The parts of a transformer and its projectors, by the names of published checkpoints.

B images, T tokens, W the transformer's width, C latent channels, h and w the latent's sides.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.attention import Attention, Rotation, make_dropout, make_norm

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


class MLP(nn.Module):
    """Two linear layers with a tanh-approximated GELU between them."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:  # noqa: ARG002 - it has none
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return output


class SwiGLU(nn.Module):
    """Two linear layers with a gate between them (arXiv 2002.05202), about as costly as an MLP."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = swiglu_width(width)
        self.drop = make_dropout(dropout)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.w12(tokens).chunk(2, dim=-1)
        output: Tensor = self.w3(self.drop(F.silu(gate) * value))
        return output


def swiglu_width(width: int) -> int:
    """The width inside of it: two thirds of a plain MLP's, which has two layers and not three."""
    return int(2 / 3 * (4 * width))


FEED_FORWARD: dict[str, type[nn.Module]] = {"gelu": MLP, "swiglu": SwiGLU}


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens [B, T, W] by the condition's [B, 1, W] (adaLN)."""
    return tokens * (1 + scale) + shift


@dataclass(frozen=True)
class Layers:
    """Of what layers blocks are made, by the names of `stages.model.sizes`.

    qk_norm: whether queries and keys are normalised in each head; value_residual: whether the
    first block's values are mixed into those of the others (arXiv 2410.17897).
    """

    norm: str = "layer"
    mlp: str = "gelu"
    qk_norm: bool = False
    value_residual: bool = False


class Block(nn.Module):
    """A transformer block with adaLN-Zero (DiT, section 3.2).

    is_first: whether it is the one that gives its values to the others, where they are mixed;
    dropout: of attention's output, and inside of a gated MLP.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: Layers,
        *,
        fused_attention: bool,
        is_first: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gives_values = layers.value_residual and is_first
        self.norm1 = make_norm(layers.norm, width)
        self.attn = Attention(
            width,
            heads,
            norm=layers.norm if layers.qk_norm else None,
            fused=fused_attention,
            mixes_values=layers.value_residual and not is_first,
            dropout=dropout,
        )
        self.norm2 = make_norm(layers.norm, width)
        self.mlp = FEED_FORWARD[layers.mlp](width, dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor,
        rotation: Rotation | None = None,
        first_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The tokens behind it, and the values of attention if it gives them to other blocks."""
        made = self.adaLN_modulation(condition)[:, None]
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = made.chunk(6, dim=2)
        modulated = modulate(self.norm1(tokens), shift_attn, scale_attn)
        attended, values = self.attn(modulated, rotation, first_values)
        tokens = tokens + gate_attn * attended
        transformed = self.mlp(modulate(self.norm2(tokens), shift_mlp, scale_mlp))
        output: Tensor = tokens + gate_mlp * transformed
        return output, values if self.gives_values else None


class FinalLayer(nn.Module):
    """Tokens [B, T, W] to patches [B, T, patch * patch * C].

    class_features: D of a class token in front of them, which becomes [B, D]; 0 for none.
    """

    def __init__(
        self, width: int, outputs: int, class_features: int = 0, norm: str = "layer"
    ) -> None:
        super().__init__()
        self.norm_final = make_norm(norm, width)
        self.linear = nn.Linear(width, outputs)
        self.linear_cls = nn.Linear(width, class_features) if class_features else None
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=2)
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
