"""What a loss term is: its settings, and what it makes of what is seen of a step.

B images of a batch, T tokens, W the transformer's width, D an encoder's features, C latent
channels, h and w the latent's sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field, NonNegativeFloat

from stages.setting_types import Count, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

# Images of a step and what is drawn for them are asked for by name.
Named = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Shapes:
    """The sizes that a term's module depends on.

    width: W; arrays: of an image, by the names of the arrays that the term reads.
    """

    width: int
    arrays: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Seen:
    """What a term sees of a step.

    batch: the cached arrays that it reads, float32, besides `moments` [B, 2C, h, w] and `labels`
    [B]; drawn: what it asked for, besides `posterior` and `noise` [B, C, h, w]; time: [B], in the
    unit of the model; level: [B], the same from 0, clean, to 1, noise; clean, noisy, target:
    [B, C, h, w], the latents, the model's input, and what its prediction is to be; prediction:
    [B, C or 2C, h, w]; hidden: tokens [B, T, W] behind blocks, by the blocks' numbers from 1;
    projected: what the term's own module made of them.
    """

    batch: Named
    drawn: Named
    time: Tensor
    level: Tensor
    clean: Tensor
    noisy: Tensor
    target: Tensor
    prediction: Tensor
    hidden: Mapping[int, Tensor]
    projected: Tensor | None = None


class Term(Settings, ABC):
    """A loss of every image, and its settings.

    To add one, subclass it with a `kind`, in a file of its own, and name it in `TERMS`. Import
    torch where it computes: configurations are checked without it.

    module_list: the list of the model's that holds the term's module, by the name that published
    code gives it; compares_images: whether an image's loss depends on the others of its batch,
    which then cannot be computed in parts.
    """

    module_list: ClassVar[str] = "projectors"
    compares_images: ClassVar[bool] = False

    kind: str
    """Which loss it is."""
    weight: NonNegativeFloat = 1.0
    """Of this loss in the total."""
    until: Count | None = None
    """The step at which it ends, if before the last one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its losses, for logs."""
        return (self.kind,)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Whose arrays it reads."""
        return ()

    @property
    def arrays(self) -> tuple[str, ...]:
        """The cached arrays that it reads, by the names of `stages.train.cached_data`."""
        return ()

    @property
    def depths(self) -> tuple[int, ...]:
        """The blocks, counted from 1, whose output it sees."""
        return ()

    def draws(self, latent: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Standard normal numbers that it needs: for each name the shape for one image.

        latent: (C, h, w).
        """
        return {}

    @final
    def is_active(self, step: int) -> bool:
        """Whether it is part of a step, counted from 0: of all before `until`."""
        return self.until is None or step < self.until

    def make_module(self, shapes: Shapes) -> nn.Module | None:  # noqa: ARG002
        """What it trains beside the model: from its hidden states to its `projected`."""
        return None

    def module_flops(self, shapes: Shapes, tokens: int) -> float:  # noqa: ARG002
        """Operations of its module's forward pass for an image of so many hidden tokens."""
        return 0.0

    @abstractmethod
    def losses(self, seen: Seen) -> Sequence[Tensor]:
        """For each of its names the loss of every image, float32 [B]."""


class Alignment(Term):
    """Compares hidden tokens, projected by an MLP, with an encoder's tokens at the same places."""

    encoder: str
    """One of `[encoders]`."""
    depth: Count = 8
    """The block, counted from 1, whose output is aligned."""
    weight: NonNegativeFloat = 0.5
    """Of this loss in the total."""
    projector_width: Annotated[int, Field(gt=0, le=2**20)] = 2048
    """Of the projector's hidden layers."""

    # Whether a token's length matters; if not, int8 tokens are read without their scales.
    needs_lengths: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:
        return (f"alignment/{self.encoder}",)

    @property
    def encoders(self) -> tuple[str, ...]:
        return (self.encoder,)

    @property
    def tokens(self) -> str:
        """The name of the encoder's tokens among the arrays that it reads."""
        return f"{self.encoder}/{'tokens' if self.needs_lengths else 'directions'}"

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.tokens,)

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.depth,)

    def make_module(self, shapes: Shapes) -> nn.Module:
        from stages.model.blocks import MLPProjector

        return MLPProjector(shapes.width, self.projector_width, shapes.arrays[self.tokens][-1])

    def module_flops(self, shapes: Shapes, tokens: int) -> float:
        features, hidden = shapes.arrays[self.tokens][-1], self.projector_width
        return 2.0 * tokens * hidden * (shapes.width + hidden + features)

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        assert seen.projected is not None
        return [self.loss(seen.projected.float(), seen.batch[self.tokens].float())]

    @abstractmethod
    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each image, float32 [B]. projected, tokens: float32 [B, T, D]."""
