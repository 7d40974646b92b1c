"""Dispersive loss: hidden states of different images away from each other (arXiv 2506.09027).

B images of a process, T tokens, W the transformer's width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from stages.setting_types import Count
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Seen

# What each of the published programs has, and the share of all blocks that come before the loss.
RECIPES: Mapping[str, Mapping[str, float]] = {
    "jax": {"weight": 0.5, "temperature": 0.5},
    "torch": {"weight": 0.25, "temperature": 1.0},
}
SHARES = {"jax": 0.25, "torch": 1.0}


class Dispersive(Term):
    """The logarithm of the mean of exp(-d / temperature) over all pairs of images, in float32.

    d: the mean squared difference of their hidden tokens (InfoNCE without positive pairs, eq. 6,
    with squared l2 distance). Pairs are of the images of one process, each with itself among them.
    """

    least_images: ClassVar[int] = 2

    kind: Literal["dispersive"] = "dispersive"
    """Which loss it is."""
    recipe: Literal["jax", "torch"] = "jax"
    """Whose weight, temperature and depth are the defaults: those of the paper, whose program is
    jax, with batches of 16 a process; or of the published one in PyTorch, 0.25, 1 and the last
    block, with batches of 32."""
    weight: NonNegativeFloat = RECIPES["jax"]["weight"]
    """Of this loss in the total."""
    temperature: PositiveFloat = RECIPES["jax"]["temperature"]
    """That mean squared differences are divided by."""
    depth: Count | None = None
    """The block, counted from 1, whose output is dispersed; by default that behind a quarter of
    them, or with the recipe `torch` the last."""

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**RECIPES.get(str(given.get("recipe", "jax")), {}), **given}

    def settled(self, blocks: int) -> Self:
        if self.depth is not None:
            return self
        return self.model_copy(update={"depth": max(1, round(blocks * SHARES[self.recipe]))})

    @property
    def compares_images(self) -> bool:
        return True

    @property
    def depths(self) -> tuple[int, ...]:
        assert self.depth is not None
        return (self.depth,)

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        (depth,) = self.depths
        hidden = seen.hidden[depth].float()
        return [dispersion(hidden, self.temperature).expand(len(hidden))]


def dispersion(hidden: Tensor, temperature: float) -> Tensor:
    """The loss of hidden tokens [B, T, W] of B images, a number from -log B to 0."""
    states = hidden.flatten(1)
    # Differences are those between the images, and lose fewer digits without their mean.
    states = states - states.mean(dim=0).detach()
    products = states @ states.T
    squares = products.diagonal()
    differences = (squares[:, None] + squares - 2 * products) / states.shape[1]
    return (-differences / temperature).flatten().logsumexp(dim=0) - 2 * math.log(len(states))
