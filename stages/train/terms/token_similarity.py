"""Token similarity: cosines between the tokens of an image as an encoder has them.

sREPA (arXiv 2605.16949) and U-REPA (arXiv 2503.18414). B images, T tokens, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat

from stages.train.terms.repa import Repa
from stages.train.terms.term import Alignment, Term

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stages.train.train_settings import TrainSettings

# Entries of the matrices of cosines that are held at once, 64 MB each: those of 256 images of 256
# tokens, or of 16 of 1,024.
MOST_COSINES = 1 << 24


class TokenSimilarity(Alignment):
    """The mean squared difference between two matrices of cosines, [T, T] each, in float32.

    One is of the projected tokens of an image, the other of its tokens in the encoder. Memory is
    bounded whatever T: parts of a batch are compared one by one, and again in the backward pass.
    """

    kind: Literal["token-similarity"] = "token-similarity"
    """Which loss it is."""
    weight: NonNegativeFloat = 2.0
    """Of this loss in the total."""
    pairs: Literal["different", "all"] = "different"
    """Which pairs of tokens the mean is over: different ones, as in sREPA, or also those of a token
    with itself, which never differ, as in U-REPA (whose weight is 1.5 beside REPA's 0.5)."""
    shares_projector: bool = True
    """Whether hidden tokens are projected by the entry of kind `repa` with the same encoder and
    depth, as published, or by a projector of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        return (f"similarity/{self.encoder}",)

    def lender(self, train: TrainSettings) -> Term | None:
        if not self.shares_projector:
            return None
        return next((term for term in train.align if self._could_share(term)), None)

    def _could_share(self, term: Term) -> bool:
        return isinstance(term, Repa) and (term.encoder, term.depth) == (self.encoder, self.depth)

    def problems(self, train: TrainSettings) -> Iterator[str]:
        yield from super().problems(train)
        if self.shares_projector and self.lender(train) is None:
            yield (
                f"shares_projector: no entry of kind 'repa' has encoder {self.encoder!r} and depth "
                f"{self.depth}, whose projector it could share; add one, or set this to false"
            )

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import normalize
        from torch.utils.checkpoint import checkpoint

        size = max(1, MOST_COSINES // tokens.shape[1] ** 2)
        ours, theirs = (normalize(one, dim=-1).split(size) for one in (projected, tokens))
        parts: list[Tensor] = [
            checkpoint(
                _difference, *some, self.pairs, use_reentrant=False, preserve_rng_state=False
            )
            for some in zip(ours, theirs, strict=True)
        ]
        return torch.cat(parts)


def _difference(ours: Tensor, theirs: Tensor, pairs: str) -> Tensor:
    """The mean squared difference of the cosines of unit tokens [B, T, D], [B]."""
    import torch

    differences = (ours @ ours.mT - theirs @ theirs.mT).square()
    if pairs == "all":
        return differences.mean(dim=(1, 2))
    tokens = ours.shape[1]
    same = torch.eye(tokens, dtype=torch.bool, device=ours.device)
    return differences.masked_fill(same, 0).sum(dim=(1, 2)) / max(1, tokens * (tokens - 1))
