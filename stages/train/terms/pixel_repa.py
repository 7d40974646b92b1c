"""PixelREPA: hidden tokens of a JiT, some of them masked, through an adapter (arXiv 2603.14366).

B images, T tokens, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from stages.setting_types import Few
from stages.train.terms.repa import minus_mean_cosine
from stages.train.terms.term import Alignment
from stages.train.terms.uniforms import uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from stages.train.terms.seen import Named, Shapes
    from stages.train.train_settings import TrainSettings


class PixelRepa(Alignment):
    """REPA through blocks that see hidden tokens with gaps; one minus the mean cosine."""

    # Its adapter is told time and class, and which tokens are masked.
    is_told: ClassVar[bool] = True

    kind: Literal["pixel-repa"] = "pixel-repa"
    """Which loss it is."""
    weight: NonNegativeFloat = 0.1
    """Of this loss in the total."""
    masked: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The probability that a token is masked; the published ablation has it from 0 to 0.5."""
    blocks: Few = 2
    """Of the adapter."""

    def problems(self, train: TrainSettings) -> Iterator[str]:
        yield from super().problems(train)
        if train.family != "JiT":
            yield f"kind: 'pixel-repa' is for a JiT, not for {train.model}"

    @property
    def mask(self) -> str:
        """The name of what is drawn for the mask."""
        return f"pixel-repa/{self.encoder}/{self.depth}"

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:
        return {self.mask: shapes.arrays[self.tokens][:1]}

    def told(self, drawn: Named) -> Sequence[Tensor]:
        return [uniform(drawn[self.mask]) <= self.masked]

    def make_module(self, shapes: Shapes) -> nn.Module:
        from stages.model.masked_adapter import MaskedAdapter

        assert shapes.model is not None
        return MaskedAdapter(shapes.model, self.blocks, shapes.arrays[self.tokens][-1])

    def module_flops(self, shapes: Shapes, tokens: int) -> float:
        from stages.model.blocks import swiglu_width

        assert shapes.model is not None
        width, features = shapes.width, shapes.arrays[self.tokens][-1]
        every = tokens + shapes.model.label_tokens
        layers = (8 * width + 6 * swiglu_width(width)) * every * width
        block = layers + 4 * every**2 * width + 12 * width**2
        head = 0 if features == width else 2 * tokens * width * (width + features)
        return float(self.blocks * block + head)

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        return 1 + minus_mean_cosine(projected, tokens)
