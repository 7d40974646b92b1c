"""iREPA: hidden tokens as like an encoder's in their spatial structure (arXiv 2512.10794).

B images, T tokens, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from stages.train.terms.repa import minus_mean_cosine
from stages.train.terms.term import Alignment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.train.terms.seen import Named, Shapes

# What is added to the standard deviation of a feature, as in the published code.
EPSILON = 1e-6


class IRepa(Alignment):
    """REPA through one convolution, towards tokens without part of what all of an image share.

    It sees the patches of an image alone, also where a class token is diffused along.
    """

    # Statistics over tokens depend on the lengths of these.
    needs_lengths: ClassVar[bool] = True

    kind: Literal["irepa"] = "irepa"
    """Which loss it is."""
    weight: NonNegativeFloat = 1.0
    """Of this loss in the total."""
    projector: Literal["conv", "mlp"] = "conv"
    """What makes an encoder's tokens of hidden ones: one convolution, or REPA's layers of
    `projector_width`."""
    kernel: Literal[1, 3] | None = None
    """The convolution's side in tokens; by default that of the weights that the run starts from,
    and 3 if they have none. The published code's default is 1, the paper's 3."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.6
    """How much of each feature's mean over an image is taken from the targets."""

    @model_validator(mode="before")
    @classmethod
    def _check_class_token(cls, section: Any) -> Any:
        if isinstance(section, dict) and section.get("class_token"):
            raise ValueError(
                "class_token: 'irepa' is undefined for it, as a convolution over the grid of "
                "patches cannot see it; add an entry of kind 'repa' that does"
            )
        return section

    def make_module(self, shapes: Shapes) -> nn.Module:
        from stages.model.projectors import ConvProjection, MLPProjection

        width, features = shapes.width, shapes.arrays[self.tokens][-1]
        if self.projector == "mlp":
            return MLPProjection(width, self.projector_width, features)
        return ConvProjection(width, features, self.kernel)

    def module_flops(self, shapes: Shapes, tokens: int) -> float:
        from stages.model.projectors import KERNEL

        if self.projector == "mlp":
            return super().module_flops(shapes, tokens)
        places = (self.kernel or KERNEL) ** 2
        return 2.0 * tokens * places * shapes.width * shapes.arrays[self.tokens][-1]

    def targets(self, tokens: Tensor, batch: Named) -> Tensor:
        return spatially_normalised(super().targets(tokens, batch), self.alpha)

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        return minus_mean_cosine(projected, tokens)


def spatially_normalised(tokens: Tensor, alpha: float) -> Tensor:
    """Tokens [B, T, D], each feature by its mean and deviation over an image (iREPA, section 4)."""
    deviation = tokens.std(dim=1, keepdim=True) + EPSILON
    return (tokens - alpha * tokens.mean(dim=1, keepdim=True)) / deviation
