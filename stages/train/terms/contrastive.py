"""Contrastive flow matching: away from the velocities of other images (arXiv 2506.05350).

B images of a process, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from stages.model.sizes import LATENTS
from stages.train.terms.denoising import squared_error
from stages.train.terms.term import Term
from stages.train.terms.uniforms import uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Named, Seen, Shapes
    from stages.train.train_settings import TrainSettings

NEGATIVES = "contrastive/negatives"


class Contrastive(Term):
    """How far a prediction is from the velocity of another image (Delta-FM, eq. 5).

    The mean squared difference, in float32; it is subtracted from the total. The other image is
    one of the same process at the same step, with its own noise.
    """

    is_maximised: ClassVar[bool] = True
    least_images: ClassVar[int] = 2
    needs_latent_mean: ClassVar[bool] = True

    kind: Literal["contrastive"] = "contrastive"
    """Which loss it is."""
    weight: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """With which it is subtracted from the total."""
    negatives: Literal["other", "other-class", "rolled"] = "other"
    """Which image an image is told from: any other one, one of another class, both drawn anew at
    every step, or the one before it in the batch (SR-DiT)."""
    skip_unlabelled: bool = False
    """Whether images whose label is dropped are told from none, and the others count for them."""

    @property
    def compares_images(self) -> bool:
        return True

    def problems(self, train: TrainSettings) -> Iterator[str]:
        if train.family != "SiT":
            yield f"kind: {self.kind!r} is for SiT, whose velocities it compares"
        elif train.interpolant != "linear":
            yield (
                f"kind: {self.kind!r} is for train.interpolant = 'linear', on which an image has "
                "one velocity at all times"
            )
        same = [term for term in train.align if isinstance(term, type(self))]
        if self is not same[0]:
            yield f"kind: a run has one entry of {self.kind!r} at most, got {len(same)}"

    def draws(self, shapes: Shapes) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        return {} if self.negatives == "rolled" else {NEGATIVES: ()}

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        latents = seen.streams[LATENTS]
        negatives, has_one = self._negatives(seen.batch["labels"], seen.drawn)
        counted = has_one & ~seen.drawn["dropped"] if self.skip_unlabelled else has_one
        losses = squared_error(latents.prediction, latents.target[negatives])
        # Those that count make up for the others.
        return [losses * counted * (len(counted) / counted.sum().clamp(min=1))]

    def _negatives(self, labels: Tensor, drawn: Named) -> tuple[Tensor, Tensor]:
        """The place of each image's negative in the batch, int64 [B], and whether it has one."""
        import torch

        places = torch.arange(len(labels), device=labels.device)
        if self.negatives == "rolled":
            return places.roll(1), torch.ones_like(places, dtype=torch.bool)
        if self.negatives == "other":
            is_other = places[:, None] != places
        else:
            is_other = labels[:, None] != labels
        count = is_other.sum(dim=1)
        # Number k of them, from 0: it has as many places before it as have seen k or fewer.
        number = (uniform(drawn[NEGATIVES]) * count).long().minimum(count - 1)
        before = is_other.cumsum(dim=1) <= number[:, None]
        return before.sum(dim=1).clamp(max=len(labels) - 1), count > 0
