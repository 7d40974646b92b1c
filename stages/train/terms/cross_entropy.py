"""Cross-entropy of queries that each have one target among all, without holding all similarities.

N queries, M targets, D features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of a matrix of similarities that are held at once: 256 MB.
MOST_SIMILARITIES = 1 << 26


class OwnTarget(torch.autograd.Function):
    """Minus the logarithm of the softmax over targets of products with a query, at its own; [N].

    queries: [N, D]; targets: [M, D], without gradient; first: the place among them of the first
    query's own target, behind which lie those of the others. Similarities are multiplied out once:
    a query's loss depends on no other, so its gradient is known but for a factor as soon as they
    are, and that, [N, D], is all that is kept of them.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, targets: Tensor, first: int) -> Tensor:
        size = max(1, MOST_SIMILARITIES // len(targets))
        losses, gradients = [], []
        for start in range(0, len(queries), size):
            logarithms = (queries[start : start + size] @ targets.T).log_softmax(dim=1)
            own = logarithms.diagonal(first + start)
            losses.append(-own)
            probabilities = logarithms.exp_()
            own -= 1
            gradients.append(probabilities @ targets)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (of_queries,) = ctx.saved_tensors
        return of_queries * gradient[:, None], None, None
