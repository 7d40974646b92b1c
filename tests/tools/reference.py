"""The published implementations' models, as their golden tensors describe them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.model.blocks import MLPProjector
from stages.model.transformer import MakeLists, Transformer
from stages.model.transformer_config import TransformerConfig, config_named


def published(name: str) -> "Described":
    """The published model of a name, for ImageNet at 256 px, aligned to DINOv2-B."""
    config = config_named(
        name,
        side=32,
        channels=4,
        classes=1000,
        has_null_class=True,
    )
    return with_projectors(config, 2048, (768,))


class Described(NamedTuple):
    """A transformer and what is trained beside it."""

    config: TransformerConfig
    make_lists: MakeLists = dict

    def make(self) -> Transformer:
        return Transformer(self.config, make_lists=self.make_lists)


def with_projectors(config: TransformerConfig, hidden: int, features: Sequence[int]) -> Described:
    """A transformer with projectors to some widths."""
    width = config.width
    return Described(
        config, lambda: {"projectors": [MLPProjector(width, hidden, one) for one in features]}
    )


def golden_described(sit_repa: Any) -> Described:
    """The published model with the projectors that it was trained with."""
    config = json.loads(sit_repa.metadata["config"])
    return with_projectors(_config(sit_repa), config["projector_dim"], config["z_dims"])


def golden_model(sit_repa: Any) -> Transformer:
    return _loaded(sit_repa, golden_described(sit_repa))


def golden_dit(dit: Any) -> Transformer:
    learns_sigma = json.loads(dit.metadata["config"])["learn_sigma"]
    return _loaded(dit, Described(_config(dit, learns_sigma=learns_sigma)))


def golden_sit(sit_official: Any) -> TransformerConfig:
    """What both models in the file of SiT's own code are."""
    return _config(sit_official)


def _loaded(golden: Any, described: Described) -> Transformer:
    model = described.make()
    model.load_state_dict(golden.below("model."))
    return model


def _config(golden: Any, **own: Any) -> TransformerConfig:
    """The model that all files describe alike, but for what is its own."""
    config = json.loads(golden.metadata["config"])
    return TransformerConfig(
        side=config["input_size"],
        patch=config["patch_size"],
        channels=config["in_channels"],
        depth=config["depth"],
        width=config["hidden_size"],
        heads=config["num_heads"],
        classes=config["num_classes"],
        has_null_class=True,
        **own,
    )


def predict(
    state: Mapping[str, Tensor],
    latents: Tensor,
    time: Tensor,
    labels: Tensor,
    heads: int,
    *,
    drops_half: bool,
) -> Tensor:
    """What SiT predicts, [B, C, h, w], from its published parameter names alone.

    Uses every tensor but those of projectors. drops_half: whether the output's second half is
    left out, as SiT does with twice as many channels.
    """
    unused = {name for name in state if not name.startswith("projectors.")}

    def linear(name: str, x: Tensor) -> Tensor:
        unused.difference_update((f"{name}.weight", f"{name}.bias"))
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    unused -= {"pos_embed", "x_embedder.proj.weight", "x_embedder.proj.bias"}
    kernel = state["x_embedder.proj.weight"]
    patch = kernel.shape[-1]
    x = F.conv2d(latents, kernel, state["x_embedder.proj.bias"], stride=patch)
    grid = x.shape[-1]
    x = x.flatten(2).mT + state["pos_embed"]
    angles = time[:, None] * 10_000 ** (-torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    unused.discard("y_embedder.embedding_table.weight")
    condition = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", waves)))
    condition = F.silu(condition + state["y_embedder.embedding_table.weight"][labels])
    for number in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        block = f"blocks.{number}"
        parts = linear(f"{block}.adaLN_modulation.1", condition).chunk(6, dim=1)
        qkv = linear(f"{block}.attn.qkv", modulated(x, *parts[:2])).unflatten(2, (3, heads, -1))
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        attended = linear(f"{block}.attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        x = x + parts[2][:, None] * attended
        hidden = linear(f"{block}.mlp.fc1", modulated(x, *parts[3:5]))
        x = x + parts[5][:, None] * linear(f"{block}.mlp.fc2", F.gelu(hidden, approximate="tanh"))
    shift_scale = linear("final_layer.adaLN_modulation.1", condition).chunk(2, dim=1)
    x = linear("final_layer.linear", modulated(x, *shift_scale))
    images = x.reshape(len(x), grid, grid, patch, patch, -1)
    images = torch.einsum("bhwpqc->bchpwq", images).flatten(4, 5).flatten(2, 3)
    assert not unused, unused
    return images.chunk(2, dim=1)[0] if drops_half else images


def training(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What REPA's and SiT's training writes, with the model's weights negated beside the EMA."""
    return {
        "model": {name: -tensor for name, tensor in state.items()},
        "ema": state,
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="SiT-XL/2", resolution=256),
        "steps": 3,
    }
