"""Alignment of hidden tokens with an encoder's tokens.

B images, T tokens, D features.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cosine_similarity


def negative_cosine(projected: Tensor, tokens: Tensor) -> Tensor:
    """Minus the mean cosine between tokens at the same place (REPA, eq. 8), in float32.

    projected: the transformer's tokens in feature space, [B, T, D]; tokens: the encoder's.
    """
    return -cosine_similarity(projected.float(), tokens.float(), dim=-1, eps=1e-12).mean()


# The names that `train.alignment` takes.
ALIGNMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"repa": negative_cosine}
