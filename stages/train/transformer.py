"""SiT: a diffusion transformer on latent patches, with projectors for alignment.

B images, C latent channels, h and w the latent's sides, T tokens, W the model's width, D an
encoder's features. Parameter names are those of the published code, so that its checkpoints
load as they are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.train.projectors import mlp_projector

FREQUENCIES = 256


@dataclass(frozen=True)
class TransformerConfig:
    """What decides a transformer's parameters.

    side: of the latent; patch: its patches' side; channels: of the latent; classes: without
    the null class; features: width of each encoder to align with; align_depth: the number of
    blocks before the projectors.
    """

    side: int
    patch: int
    channels: int
    depth: int
    width: int
    heads: int
    classes: int
    features: tuple[int, ...]
    align_depth: int
    projector_width: int
    has_null_class: bool

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.side // self.patch


class PatchEmbedding(nn.Module):
    """Latents [B, C, h, w] to tokens [B, T, W], row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        tokens: Tensor = self.proj(latents).flatten(2).transpose(1, 2)
        return tokens


class TimeEmbedding(nn.Module):
    """Times [B] to [B, W]: sinusoids of 256 frequencies, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
        angles = time.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
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
    """Multi-head self-attention over tokens [B, T, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return output


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

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
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
    """Tokens [B, T, W] to patches [B, T, patch * patch * C]."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)
        patches: Tensor = self.linear(modulate(self.norm_final(tokens), shift, scale))
        return patches


class Transformer(nn.Module):
    """SiT with one projector per encoder."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbedding(config.channels, width, config.patch)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(config.classes, width, config.has_null_class)
        self.pos_embed = nn.Parameter(positions(width, config.grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.projectors = nn.ModuleList(
            mlp_projector(width, config.projector_width, features) for features in config.features
        )
        self.final_layer = FinalLayer(width, config.patch**2 * config.channels)
        self._initialise()

    def forward(
        self, latents: Tensor, time: Tensor, labels: Tensor, *, project: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """The velocity [B, C, h, w], and hidden tokens projected for each encoder [B, T, D].

        latents: [B, C, h, w]; time: [B] in [0, 1]; labels: [B], the number of classes for none.
        project: whether the projectors are computed; training needs them, sampling does not.
        """
        tokens = self.x_embedder(latents) + self.pos_embed
        condition = self.t_embedder(time) + self.y_embedder(labels)
        projected: list[Tensor] = []
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            if project and depth == self.config.align_depth:
                projected = [projector(tokens) for projector in self.projectors]
        return self._assemble(self.final_layer(tokens, condition)), projected

    def _assemble(self, patches: Tensor) -> Tensor:
        """Patches [B, T, patch * patch * C] to an image-like tensor [B, C, h, w]."""
        grid, patch = self.config.grid, self.config.patch
        cells: Tensor = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _initialise(self) -> None:
        """Xavier for linear layers, normal(0.02) for embeddings, zero where adaLN-Zero starts."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        zeros = ("adaLN_modulation", "final_layer.linear", "x_embedder.proj.bias")
        for name, parameter in self.named_parameters():
            if name.startswith(("y_embedder", "t_embedder")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            if any(part in name for part in zeros):
                nn.init.zeros_(parameter)


def training_flops(config: TransformerConfig) -> float:
    """Floating-point operations of one image's forward and backward pass.

    Counts matrix products, at two operations a multiplication; a backward pass is two forward
    passes.
    """
    tokens, width, hidden = config.grid**2, config.width, config.projector_width
    block = 24 * tokens * width**2 + 4 * tokens**2 * width + 12 * width**2
    projectors = sum(hidden * (width + hidden + features) for features in config.features)
    return 3.0 * (config.depth * block + 2 * tokens * projectors)


def positions(width: int, grid: int) -> Tensor:
    """Fixed sinusoidal positions [grid * grid, width]: columns in the first half, then rows."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()
