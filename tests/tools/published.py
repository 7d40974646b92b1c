"""Tiny checkpoints in the formats in which encoders are published, and what is right for them.

The transformers here are written from the encoders' definitions and share no code with timm.
B images, T tokens, D features, H heads.
"""

import math
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]

WIDTH = 24


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Weights whose every tensor matters for the result."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def vit(
    patch: int,
    positions: int,
    depth: int = 2,
    *,
    seed: int = 0,
    class_token: bool = True,
    scales: bool = False,
    extra: dict[str, tuple[int, ...]] | None = None,
) -> State:
    """A vision transformer in the names of DINO, MAE, I-JEPA and MoCo v3.

    positions: of patches, before that of the class token; scales: of DINOv2's residuals.
    """
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if positions:
        shapes["pos_embed"] = (1, positions + class_token, WIDTH)
    if class_token:
        shapes["cls_token"] = (1, 1, WIDTH)
    for block in range(depth):
        layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for layer, (out, into) in layers.items():
            shapes[f"blocks.{block}.{layer}.weight"] = (out * WIDTH, into * WIDTH)
            shapes[f"blocks.{block}.{layer}.bias"] = (out * WIDTH,)
        for layer in ("norm1", "norm2"):
            shapes[f"blocks.{block}.{layer}.weight"] = (WIDTH,)
            shapes[f"blocks.{block}.{layer}.bias"] = (WIDTH,)
        if scales:
            shapes[f"blocks.{block}.ls1.gamma"] = (WIDTH,)
            shapes[f"blocks.{block}.ls2.gamma"] = (WIDTH,)
    return random_state(shapes | (extra or {}), seed)


def run_vit(
    state: State, inputs: Tensor, heads: int, *, epsilon: float = 1e-6, tanh: bool = False
) -> Tensor:
    """All tokens before the final norm, [B, 1 + T, D] or [B, T, D].

    Positions lie on the grid of the inputs, by a bicubic antialiased resize. Registers follow
    the class token; DINOv3's turn queries and keys instead of adding positions.
    """
    weight = state["patch_embed.proj.weight"]
    patches = F.conv2d(inputs, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    side = patches.shape[-1]
    tokens = patches.flatten(2).mT
    rotation = None
    if "storage_tokens" in state:
        tokens = with_prefix(tokens, state["cls_token"], state["storage_tokens"])
        rotation = dinov3_rotation(side, WIDTH // heads)
    elif "cls_token" in state:
        positions = state["pos_embed"]
        first = state["cls_token"] + positions[:, :1]
        registers = [state["register_tokens"]] if "register_tokens" in state else []
        tokens = with_prefix(tokens + resized(positions[:, 1:], side), first, *registers)
    else:
        tokens = tokens + resized(state["pos_embed"], side)
    for block in range(sum(name.endswith("norm1.weight") for name in state)):
        own = {n.removeprefix(f"blocks.{block}."): t for n, t in state.items()}
        normed = norm(tokens, own, "norm1", epsilon)
        tokens = tokens + attention(normed, own, heads, rotation) * own.get("ls1.gamma", 1)
        hidden = linear(norm(tokens, own, "norm2", epsilon), own, "mlp.fc1")
        hidden = F.gelu(hidden, approximate="tanh" if tanh else "none")
        tokens = tokens + linear(hidden, own, "mlp.fc2") * own.get("ls2.gamma", 1)
    return tokens


def with_prefix(tokens: Tensor, *prefix: Tensor) -> Tensor:
    return torch.cat([*(part.expand(len(tokens), -1, -1) for part in prefix), tokens], dim=1)


def resized(positions: Tensor, side: int) -> Tensor:
    old = math.isqrt(positions.shape[1])
    if old == side:
        return positions
    grid = positions.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    return grid.flatten(2).mT


def linear(tokens: Tensor, state: State, name: str) -> Tensor:
    return tokens @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(tokens: Tensor, state: State, name: str, epsilon: float) -> Tensor:
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
    normed = (tokens - mean) / torch.sqrt(variance + epsilon)
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(
    tokens: Tensor, state: State, heads: int, rotation: tuple[Tensor, Tensor] | None
) -> Tensor:
    batch, count, width = tokens.shape
    projected = linear(tokens, state, "attn.qkv").reshape(batch, count, 3, heads, width // heads)
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    if rotation is not None:
        query, key = rotated(query, *rotation), rotated(key, *rotation)
    weights = (query @ key.mT / math.sqrt(width // heads)).softmax(-1)
    return linear((weights @ value).transpose(1, 2).flatten(2), state, "attn.proj")


def dinov3_rotation(side: int, width: int) -> tuple[Tensor, Tensor]:
    """Sines and cosines of every patch, [T, D]: rows and columns run from -1 to 1."""
    periods = 100 ** (torch.arange(width // 4) / (width // 4))
    centres = (torch.arange(side) + 0.5) / side * 2 - 1
    grid = torch.cartesian_prod(centres, centres)
    angles = (2 * math.pi * grid[:, :, None] / periods).flatten(1).tile(2)
    return angles.sin(), angles.cos()


def rotated(heads: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    """Turned queries or keys; those of prefix tokens stay."""
    prefix, patches = heads.split([heads.shape[2] - len(sine), len(sine)], dim=2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([prefix, turned], dim=2)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        layers = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ClipTransformer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ClipBlock(width, heads) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ClipVision(nn.Module):
    """CLIP's image tower; it ends before `ln_post`, whose weights it has all the same."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 14, 14, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(257, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = ClipTransformer(width, heads, depth)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, 8))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(image.shape[0], 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.transformer(self.ln_pre(x))


class Clip(nn.Module):
    """Both towers of CLIP; of the one for text only some weights."""

    def __init__(self, width: int = WIDTH, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.visual = ClipVision(width, heads, depth)
        self.transformer = ClipTransformer(width, heads, 1)
        self.token_embedding = nn.Embedding(10, width)
        self.positional_embedding = nn.Parameter(torch.zeros(7, width))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("context_length", torch.tensor(7))

    def forward(self, image: Tensor) -> Tensor:
        return self.visual(image)


def save_clip(path: Path) -> Clip:
    """Write CLIP's archive of half-precision weights; returns the same network in float32."""
    clip = Clip()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    with warnings.catch_warnings():
        # OpenAI published the weights in this format.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        torch.jit.save(torch.jit.script(clip.half().eval()), path)
    return clip.float()
