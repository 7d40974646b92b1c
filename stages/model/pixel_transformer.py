"""JiT (arXiv 2511.13720): a transformer on large patches of pixels, told of a class by tokens too.

B images, S their side in px, T tokens, K tokens of a class, W the model's width. Parameter names
are those of the published code.
"""

import torch
from torch import Tensor, nn

from stages.model.attention import Rotation, turned_by_place
from stages.model.conditions import Condition
from stages.model.transformer import Carried, Transformer


class BottleneckEmbedding(nn.Module):
    """Images [B, 3, S, S] to tokens [B, T, W], row by row, through few numbers of each patch."""

    def __init__(self, channels: int, bottleneck: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
        self.proj2 = nn.Conv2d(bottleneck, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj2(self.proj1(images)).flatten(2).transpose(1, 2)
        # As `PatchEmbedding` has it.
        return tokens.contiguous()


class PixelTransformer(Transformer):
    """JiT. From a block on, K tokens of the class stand in front of those of patches."""

    def _embedding(self) -> nn.Module:
        config = self.config
        return BottleneckEmbedding(config.inputs, config.bottleneck, config.width, config.patch)

    def _add_condition(self) -> None:
        super()._add_condition()
        config = self.config
        self.in_context_posemb = nn.Parameter(torch.empty(1, config.label_tokens, config.width))

    def _rotation(self, front: int) -> Rotation:
        """Of queries and keys, with so many tokens in front that have no place."""
        config = self.config
        device = self.pos_embed.device
        return turned_by_place(config.width // config.heads, config.grid, front, device)

    def _conditioned(self, time: Tensor, given: Condition) -> tuple[Tensor, Carried]:
        condition, _ = super()._conditioned(time, given)
        return condition, (self._rotation(0), None)

    def _entering(
        self, depth: int, tokens: Tensor, given: Condition, carried: Carried
    ) -> tuple[Tensor, Carried]:
        config = self.config
        if depth != config.label_tokens_from + 1:
            return tokens, carried
        label = self.y_embedder(given)[:, None] + self.in_context_posemb
        return torch.cat([label, tokens], dim=1), (self._rotation(config.label_tokens), None)

    def _of_images(self, tokens: Tensor, depth: int) -> Tensor:
        config = self.config
        return tokens[:, config.label_tokens :] if depth > config.label_tokens_from else tokens

    def _initialise_embedding(self) -> None:
        for convolution in (self.x_embedder.proj1, self.x_embedder.proj2):
            nn.init.xavier_uniform_(convolution.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj2.bias)
        nn.init.normal_(self.in_context_posemb, std=0.02)
