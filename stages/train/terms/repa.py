"""REPA: hidden tokens as like an encoder's tokens as possible (arXiv 2410.06940)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.train.terms.term import Alignment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from stages.train.terms.seen import Named
    from stages.train.train_settings import TrainSettings


class Repa(Alignment):
    """Minus the mean cosine between tokens at the same place (REPA, eq. 8), in float32."""

    kind: Literal["repa"] = "repa"
    """Which loss it is."""
    class_token: bool = False
    """Whether the hidden class token of a run that diffuses one is aligned, too, as REG does."""

    def problems(self, train: TrainSettings) -> Iterator[str]:
        yield from super().problems(train)
        if self.class_token and not train.has_class_token:
            yield "class_token: no entry of kind 'class-token' has the model diffuse one"

    @property
    def vector(self) -> str:
        """The name of the encoder's class token among the arrays that it reads."""
        return f"{self.encoder}/vector"

    @property
    def arrays(self) -> tuple[str, ...]:
        return (self.tokens, self.vector) if self.class_token else (self.tokens,)

    @property
    def sees_class_token(self) -> bool:
        return self.class_token

    def targets(self, tokens: Tensor, batch: Named) -> Tensor:
        import torch

        tokens = super().targets(tokens, batch)
        if not self.class_token:
            return tokens
        # [B, D] in front of [B, T, D].
        return torch.cat([batch[self.vector].float()[:, None], tokens], dim=1)

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        return minus_mean_cosine(projected, tokens)


def minus_mean_cosine(projected: Tensor, tokens: Tensor) -> Tensor:
    """Minus the mean over tokens of the cosines between two of them, [B, T, D] both, as [B]."""
    from torch.nn.functional import cosine_similarity

    return -cosine_similarity(projected, tokens, dim=-1, eps=1e-12).mean(dim=1)
