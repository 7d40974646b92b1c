"""What a loss term is: its settings, and what it makes of what is seen of a step.

B images of a batch, T tokens, W the transformer's width, D an encoder's features, C latent
channels, h and w the latent's sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, final

from pydantic import Field, NonNegativeFloat, NonNegativeInt, model_validator

from stages.model.sizes import LATENTS
from stages.setting_types import Count, Settings
from stages.train.terms.time_weights import AnyTimeWeight, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from stages.train.terms.seen import Named, Seen, Shapes
    from stages.train.train_settings import TrainSettings


class Term(Settings, ABC):
    """A loss of every image, and its settings.

    To add one, subclass it with a `kind`, in a file of its own, and name it in `TERMS`. Import
    torch where it computes: configurations are checked without it.

    module_list: the list of the model's that holds the term's module, by the name that published
    code gives it; is_maximised: whether its losses are subtracted from the total; least_images:
    that a process has to have at a step; needs_latent_mean: whether sampling from the run takes the
    mean of the latents that it was trained on; is_told: whether its module is given, behind hidden
    tokens, what `told` makes, the time and what the model is told of the images.
    """

    module_list: ClassVar[str] = "projectors"
    is_maximised: ClassVar[bool] = False
    least_images: ClassVar[int] = 1
    needs_latent_mean: ClassVar[bool] = False
    is_told: ClassVar[bool] = False

    kind: str
    """Which loss it is."""
    weight: NonNegativeFloat = 1.0
    """Of this loss in the total."""
    until: Count | None = None
    """The step at which it ends, if before the last one. HASTE (arXiv 2505.16792) ends alignment at
    100,000 for SiT-B (of block 5) and at 250,000 for L and XL (of block 8)."""
    fade: NonNegativeInt = 0
    """Steps before `until` over which its weight falls linearly to 0; 0 for a sudden end."""

    @model_validator(mode="after")
    def _check_fade(self) -> Self:
        if self.fade > (self.until or 0):
            end = "there is no until" if self.until is None else f"until is {self.until}"
            raise ValueError(f"fade: {self.fade} steps before an end, but {end}")
        return self

    def settled(self, blocks: int) -> Self:  # noqa: ARG002
        """The same for a model of so many blocks, if it leaves anything to their number."""
        return self

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
    def on_grid(self) -> tuple[str, ...]:
        """Encoders whose tokens have to lie on the transformer's grid."""
        return self.encoders

    @property
    def depths(self) -> tuple[int, ...]:
        """The blocks, counted from 1, whose output it sees."""
        return ()

    @property
    def teacher_depths(self) -> tuple[int, ...]:
        """The blocks of the model's moving average, its teacher, whose output it sees."""
        return ()

    def teacher_level(self, level: Tensor, drawn: Named) -> Tensor:  # noqa: ARG002
        """The levels of noise [B] at which the teacher sees the images, given the model's."""
        return level

    @property
    def compares_images(self) -> bool:
        """Whether an image's loss depends on the others of its batch: it is computed as a whole."""
        return False

    @property
    def sees_class_token(self) -> bool:
        """Whether its module takes the hidden class token, too, in front of the patches."""
        return False

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """Standard normal numbers that it needs: for each name the shape for one image."""
        return {}

    def told(self, drawn: Named) -> Sequence[Tensor]:  # noqa: ARG002
        """What its module is given behind hidden tokens, of what it drew, if it is told."""
        return ()

    def model_options(self, shapes: Shapes) -> Mapping[str, Any]:  # noqa: ARG002
        """Fields of the transformer's configuration that it decides."""
        return {}

    def problems(self, train: TrainSettings) -> Iterator[str]:  # noqa: ARG002
        """What of it does not fit the rest of `[train]`: a line each, beginning with a key."""
        return iter(())

    @final
    def is_active(self, step: int) -> bool:
        """Whether it is part of a step, counted from 0: of all before `until`."""
        return self.until is None or step < self.until

    @property
    def has_schedule(self) -> bool:
        """Whether its share changes while it is active."""
        return self.fade > 0

    def share(self, step: int) -> float:
        """How much of its weight it has at a step at which it is active, from 0 to 1."""
        if self.until is None or not self.fade:
            return 1.0
        return min(1.0, (self.until - step) / self.fade)

    def lender(self, train: TrainSettings) -> Term | None:  # noqa: ARG002
        """The entry whose module it uses, in the place of one of its own."""
        return None

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
    """Compares hidden tokens, projected by an MLP, with an encoder's tokens at the same places.

    takes_half: whether `loss` is given projected tokens as they are computed, and not in float32.
    """

    takes_half: ClassVar[bool] = False

    encoder: str
    """One of `[encoders]`."""
    depth: Count = 8
    """The block, counted from 1, whose output is aligned."""
    weight: NonNegativeFloat = 0.5
    """Of this loss in the total."""
    projector_width: Annotated[int, Field(gt=0, le=2**20)] = 2048
    """Of the projector's hidden layers."""
    time_weight: AnyTimeWeight = Uniform()
    """How much an image counts by its level of noise (VA-REPA), by default all alike. The mean is
    over the weights of a process's batch."""
    purify: bool = False
    """Whether tokens are aligned to what a least-squares fit from the clean latents leaves of them
    (LAP), one fit for each batch of a process. Class tokens stay as they are."""

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
        return f"{self.encoder}/{'tokens' if self.needs_lengths or self.purify else 'directions'}"

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.tokens,)

    @property
    def depths(self) -> tuple[int, ...]:
        return (self.depth,)

    @property
    def compares_images(self) -> bool:
        return self.purify or self.time_weight != Uniform()

    def problems(self, train: TrainSettings) -> Iterator[str]:
        path = train.interpolant if train.family == "SiT" else f"schedule of {train.family}"
        if self.time_weight.kind == "snr" and path != "linear":
            yield f"time_weight: 'snr' is that of the linear path, not of the {path}"

    def make_module(self, shapes: Shapes) -> nn.Module:
        from stages.model.blocks import MLPProjector

        return MLPProjector(shapes.width, self.projector_width, shapes.arrays[self.tokens][-1])

    def module_flops(self, shapes: Shapes, tokens: int) -> float:
        features, hidden = shapes.arrays[self.tokens][-1], self.projector_width
        return 2.0 * tokens * hidden * (shapes.width + hidden + features)

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        assert seen.projected is not None
        tokens = seen.batch[self.tokens].float()
        if self.purify:
            from stages.train.terms.purification import purified

            tokens = purified(tokens, seen.streams[LATENTS].clean)
        projected = seen.projected if self.takes_half else seen.projected.float()
        losses = self.loss(projected, self.targets(tokens, seen.batch))
        return [self.time_weight.weighted(losses, seen.level)]

    def targets(self, tokens: Tensor, batch: Named) -> Tensor:  # noqa: ARG002
        """What projected tokens are compared with, [B, T, D], of the encoder's. All are float32."""
        return tokens

    @abstractmethod
    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each image, float32 [B]. projected, tokens: [B, T, D], float32 both."""
