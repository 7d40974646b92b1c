"""SiT, DiT and MMDiT: transformers on latent patches.

B images, C latent channels, h and w the latent's sides, T tokens, X tokens of a caption, E their
features, W the model's width. Parameter names are those of the published code, so that its
checkpoints load as they are.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.model.attention import Rotary, make_affine_norm
from stages.model.blocks import (
    Block,
    FinalLayer,
    LabelEmbedding,
    Layers,
    PatchEmbedding,
    TimeEmbedding,
)
from stages.model.conditions import Condition
from stages.model.transformer_config import TransformerConfig


class Output(NamedTuple):
    """What a transformer gives for B images.

    prediction: [B, C or 2C, h, w]; hidden: tokens [B, T, W] behind blocks, by the blocks' numbers,
    a class token first, if it has one; class_prediction: that of the class token, [B, D].
    """

    prediction: Tensor
    hidden: dict[int, Tensor]
    class_prediction: Tensor | None = None

    @property
    def patches(self) -> dict[int, Tensor]:
        """The hidden tokens of patches alone, [B, T, W]."""
        if self.class_prediction is None:
            return self.hidden
        return {depth: tokens[:, 1:] for depth, tokens in self.hidden.items()}


# What is handed on from block to block beside the tokens of images.
Carried: TypeAlias = tuple[Any, ...]
# Makes modules that are trained with a transformer and lie in lists of it, by the lists' names.
MakeLists = Callable[[], Mapping[str, Sequence[nn.Module]]]


class Transformer(nn.Module):
    """SiT or DiT; `make_transformer` also makes an MMDiT.

    fused_attention: whether attention is one kernel, which never holds its matrix; recompute:
    whether the backward pass computes each block again instead of holding its activations;
    make_lists: called between blocks and final layer, which decides what a seed gives to each.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        fused_attention: bool = True,
        recompute: bool = False,
        make_lists: MakeLists = dict,
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = recompute
        width = config.width
        self.x_embedder: Any = self._embedding()
        self.t_embedder = TimeEmbedding(width)
        self._add_condition()
        places = self._places()
        if config.class_tokens:
            self.cls_projectors2 = nn.Linear(config.class_features, width)
            self.wg_norm = make_affine_norm(config.norm, width)
            # The class token has no place: a row of zeros.
            places = torch.cat([torch.zeros(1, width), places])
        self.pos_embed = nn.Parameter(places[None], requires_grad=False)
        self.feat_rope = Rotary(width // config.heads, config.grid) if config.rotary else None
        layers = Layers(config.norm, config.mlp, config.qk_norm, config.value_residual)
        self._add_blocks(layers, fused_attention=fused_attention)
        for name, modules in make_lists().items():
            self.add_module(name, nn.ModuleList(modules))
        outputs = config.patch**2 * config.outputs
        self.final_layer = FinalLayer(width, outputs, config.class_features, config.norm)
        self._initialise()

    def _embedding(self) -> nn.Module:
        """What makes tokens of patches."""
        return PatchEmbedding(self.config.inputs, self.config.width, self.config.patch)

    def _add_condition(self) -> None:
        """What embeds what is told of an image."""
        config = self.config
        self.y_embedder = LabelEmbedding(config.classes, config.width, config.has_null_class)

    def _places(self) -> Tensor:
        """The fixed positions of patches, [T, W]."""
        return positions(self.config.width, self.config.grid)

    def _add_blocks(self, layers: Layers, *, fused_attention: bool) -> None:
        config = self.config
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                layers,
                fused_attention=fused_attention,
                is_first=depth == 0,
                dropout=config.dropout_in(depth),
            )
            for depth in range(config.depth)
        )

    def keep_blocks(self, count: int) -> None:
        """Give up the blocks behind the first so many, whose output nobody sees."""
        del self.blocks[count:]

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        given: Condition,
        depths: Collection[int] = (),
        class_token: Tensor | None = None,
    ) -> Output:
        """The prediction, and the tokens behind some blocks.

        latents: [B, C, h, w]; time: [B], in the unit of the objective; given: what is told of the
        images; depths: the numbers of these blocks, from 1; class_token: noisy, [B, D], if the
        model has one.
        """
        tokens = self.x_embedder(latents)
        if class_token is not None:
            first = self.wg_norm(self.cls_projectors2(class_token))
            # [B, W] in front of [B, T, W].
            tokens = torch.cat([first[:, None], tokens], dim=1)
        tokens = tokens + self.pos_embed
        condition, carried = self._conditioned(self.t_embedder(time), given)
        hidden: dict[int, Tensor] = {}
        for depth, block in enumerate(self.blocks, start=1):
            tokens, carried = self._entering(depth, tokens, given, carried)
            tokens, made = self._run(block, tokens, condition, *carried)
            carried = self._carried(carried, made)
            if depth in depths:
                # A view of its own: gradients from here join those of later blocks as one sum,
                # so that it does not matter to the last bit when the tokens are used.
                seen = self._of_images(tokens, depth)
                hidden[depth] = seen.view_as(seen)
        tokens = self._of_images(tokens, len(self.blocks))
        patches, class_prediction = self.final_layer(tokens, condition)
        return Output(self._assemble(patches), hidden, class_prediction)

    def _conditioned(self, time: Tensor, given: Condition) -> tuple[Tensor, Carried]:
        """What modulates blocks, [B, W], and what the first of them is given beside it.

        time: embedded, [B, W].
        """
        rotation = self.feat_rope(self.config.class_tokens) if self.feat_rope is not None else None
        return time + self.y_embedder(given), (rotation, None)

    def _entering(
        self,
        depth: int,  # noqa: ARG002
        tokens: Tensor,
        given: Condition,  # noqa: ARG002
        carried: Carried,
    ) -> tuple[Tensor, Carried]:
        """The tokens that a block is given, and what beside them. depth: its number, from 1."""
        return tokens, carried

    def _of_images(self, tokens: Tensor, depth: int) -> Tensor:  # noqa: ARG002
        """The tokens behind a block without those of what is told of images."""
        return tokens

    def _carried(self, before: Carried, made: Tensor | None) -> Carried:
        """What the next block is given, of what the last one was given and made."""
        rotation, first_values = before
        return rotation, first_values if made is None else made

    def _run(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor | None]:
        """What a block makes of its inputs, as it says itself."""
        made: tuple[Tensor, Tensor | None]
        if self.recompute and torch.is_grad_enabled():
            # No other block draws random numbers whose state would have to be restored.
            draws = self.config.dropout > 0
            made = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=draws)
        else:
            made = block(*inputs)
        return made

    def _assemble(self, patches: Tensor) -> Tensor:
        """Patches [B, T, patch * patch * C] to an image-like tensor [B, C, h, w]."""
        grid, patch = self.config.grid, self.config.patch
        cells: Tensor = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
        # Cells [B, grid, grid, patch, patch, C] become [B, C, grid, patch, grid, patch].
        image_like = cells.permute(0, 5, 1, 3, 2, 4)
        return image_like.reshape(len(patches), -1, self.config.side, self.config.side)

    def _initialise(self) -> None:
        """Xavier for linear layers, normal(0.02) for embeddings, zero where adaLN-Zero starts."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self._initialise_embedding()
        zeros = ("adaLN_modulation", "final_layer.linear", "x_embedder.proj.bias")
        for name, parameter in self.named_parameters():
            is_embedding = not {"y_embedder", "t_embedder"}.isdisjoint(name.split("."))
            if is_embedding and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            if any(part in name for part in zeros):
                nn.init.zeros_(parameter)

    def _initialise_embedding(self) -> None:
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))


def positions(width: int, grid: int) -> Tensor:
    """Fixed sinusoidal positions [grid * grid, width]: columns in the first half, then rows."""
    frequencies = 1 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = axis[None].expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()
