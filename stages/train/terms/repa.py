"""REPA: hidden tokens as like an encoder's tokens as possible (arXiv 2410.06940)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.train.terms.term import Alignment

if TYPE_CHECKING:
    from torch import Tensor


class Repa(Alignment):
    """Minus the mean cosine between tokens at the same place (REPA, eq. 8), in float32."""

    kind: Literal["repa"] = "repa"
    """Which loss it is."""

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        from torch.nn.functional import cosine_similarity

        return -cosine_similarity(projected, tokens, dim=-1, eps=1e-12).mean(dim=1)
