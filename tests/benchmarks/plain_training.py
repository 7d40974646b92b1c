"""The published training loop in plain PyTorch: what train.py compares this project's with.

Written from the paper and the description of its code: SiT of timm's layers in eager mode, one
image after another in the alignment loss, one parameter after another in the moving average,
AdamW as torch makes it by default, and losses that are read at every step. Parameter names are
the published ones. B images, C latent channels, T tokens, W the width, D features.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.model.transformer_config import TransformerConfig
from stages.vision import timm

layers: Any = timm.models.vision_transformer

DECAY = 0.9999
LEARNING_RATE = 1e-4
LARGEST_NORM = 1.0
# Of REPA.
WEIGHT, ALIGN_DEPTH, PROJECTOR_WIDTH = 0.5, 8, 2048
HALF_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return tokens * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def tanh_gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.frequencies = frequencies

    def forward(self, time: Tensor) -> Tensor:
        half = self.frequencies // 2
        exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32) / half
        angles = time[:, None].float() * torch.exp(exponents).to(time.device)
        embedding: Tensor = self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        return embedding


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int, dropping: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        self.classes, self.dropping = classes, dropping

    def forward(self, labels: Tensor) -> Tensor:
        if self.training:
            dropped = torch.rand(len(labels), device=labels.device) < self.dropping
            labels = torch.where(dropped, self.classes, labels)
        embedding: Tensor = self.embedding_table(labels)
        return embedding


class SiTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = layers.Attention(width, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = layers.Mlp(width, 4 * width, act_layer=tanh_gelu)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        attended = self.attn(modulate(self.norm1(tokens), shift1, scale1))
        tokens = tokens + gate1.unsqueeze(1) * attended
        transformed = self.mlp(modulate(self.norm2(tokens), shift2, scale2))
        output: Tensor = tokens + gate2.unsqueeze(1) * transformed
        return output


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        patches: Tensor = self.linear(modulate(self.norm_final(tokens), shift, scale))
        return patches


def projector(width: int, hidden: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(width, hidden), nn.SiLU()),
        *(nn.Linear(hidden, hidden), nn.SiLU()),
        nn.Linear(hidden, features),
    )


class SiT(nn.Module):
    def __init__(
        self, config: TransformerConfig, dropping: float, features: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.x_embedder = layers.PatchEmbed(config.side, config.patch, config.channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.classes, width, dropping)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2, width), requires_grad=False)
        self.blocks = nn.ModuleList(SiTBlock(width, config.heads) for _ in range(config.depth))
        self.projectors = nn.ModuleList(projector(width, PROJECTOR_WIDTH, one) for one in features)
        self.final_layer = FinalLayer(width, config.patch**2 * config.channels)

    def forward(self, latents: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens = self.x_embedder(latents) + self.pos_embed
        images, count, width = tokens.shape
        condition = self.t_embedder(time) + self.y_embedder(labels)
        projected = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, condition)
            if number + 1 == min(ALIGN_DEPTH, len(self.blocks)):
                flat = tokens.reshape(-1, width)
                projected = [p(flat).reshape(images, count, -1) for p in self.projectors]
        return self.unpatchify(self.final_layer(tokens, condition)), projected

    def unpatchify(self, patches: Tensor) -> Tensor:
        grid, patch = self.config.grid, self.config.patch
        cells = patches.reshape(len(patches), grid, grid, patch, patch, -1)
        cells = torch.einsum("nhwpqc->nchpwq", cells)
        return cells.reshape(len(patches), -1, grid * patch, grid * patch)


def sample_posterior(moments: Tensor, scale: float) -> Tensor:
    mean, std = torch.chunk(moments, 2, dim=1)
    return (mean + std * torch.randn_like(mean)) * scale


def projection_loss(tokens: list[Tensor], projected: list[Tensor]) -> Tensor:
    """Minus the mean cosine, over encoders and images one by one."""
    total = torch.zeros((), device=tokens[0].device)
    for targets, hidden in zip(tokens, projected, strict=True):
        for target, own in zip(targets, hidden, strict=True):
            cosines = (F.normalize(target, dim=-1) * F.normalize(own, dim=-1)).sum(dim=-1)
            total = total + (-cosines).mean()
    return total / (len(tokens) * len(tokens[0]))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module) -> None:
    averaged = dict(average.named_parameters())
    for name, parameter in model.named_parameters():
        averaged[name].mul_(DECAY).add_(parameter.data, alpha=1 - DECAY)


@dataclass(frozen=True)
class Inputs:
    """A batch on the device. moments: [B, 2C, h, w]; labels: [B]; tokens: [B, T, D] each."""

    moments: Tensor
    labels: Tensor
    tokens: list[Tensor]


class PlainLoop:
    """Makes steps on the same batch. precision: of autocast, or float32 for none."""

    wait_seconds = 0.0

    def __init__(self, model: SiT, inputs: Inputs, precision: str, scale: float) -> None:
        self.model, self.inputs, self.scale = model, inputs, scale
        self.precision, self.device = precision, inputs.moments.device.type
        self.average = deepcopy(model).requires_grad_(False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0, eps=1e-8
        )
        self.scaler = torch.amp.GradScaler(self.device, enabled=precision == "float16")
        self.metrics: dict[str, float] = {}

    def losses(self, clean: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Of denoising and of alignment."""
        t = time.view(-1, 1, 1, 1)
        noisy, velocity = (1 - t) * clean + t * noise, noise - clean
        half = HALF_PRECISIONS.get(self.precision)
        with torch.autocast(self.device, half, enabled=half is not None):
            predicted, projected = self.model(noisy, time, self.inputs.labels)
        denoising = ((predicted.float() - velocity) ** 2).mean(dim=(1, 2, 3))
        aligned = projection_loss(self.inputs.tokens, [tokens.float() for tokens in projected])
        return denoising.mean(), aligned

    def step(self) -> None:
        clean = sample_posterior(self.inputs.moments, self.scale)
        time = torch.rand(len(clean), device=clean.device)
        denoising, aligned = self.losses(clean, torch.randn_like(clean), time)
        self.scaler.scale(denoising + WEIGHT * aligned).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        update_average(self.average, self.model)
        self.metrics = {
            "loss": denoising.item(),
            "proj_loss": aligned.item(),
            "grad_norm": norm.item(),
        }

    def finish(self) -> None:
        """Every step has waited for the device already."""
