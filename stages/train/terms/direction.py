"""Direction of the velocity: its cosine with the target's, beside its squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.model.sizes import LATENTS
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from stages.train.terms.seen import Seen
    from stages.train.train_settings import TrainSettings


class Direction(Term):
    """One minus the cosine over the latent's channels (LightningDiT, arXiv 2501.01423, 4.1).

    Of the predicted and the true velocity at each position, in float32; the mean over positions.
    """

    kind: Literal["direction"] = "direction"
    """Which loss it is."""

    def problems(self, train: TrainSettings) -> Iterator[str]:
        if train.family != "SiT":
            yield f"kind: {self.kind!r} is for SiT, which predicts a velocity"

    def losses(self, seen: Seen) -> Sequence[Tensor]:
        from torch.nn.functional import cosine_similarity

        latents = seen.streams[LATENTS]
        cosine = cosine_similarity(latents.prediction.float(), latents.target.float(), dim=1)
        return [(1 - cosine).flatten(1).mean(dim=1)]
