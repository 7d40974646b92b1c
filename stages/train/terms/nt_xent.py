"""NT-Xent: hidden tokens that tell their own target from all others (REPA, table 3).

N tokens of all images, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from stages.train.terms.term import Alignment

if TYPE_CHECKING:
    from torch import Tensor

# Entries of a matrix of similarities that are held at once: 256 MB.
MOST_SIMILARITIES = 1 << 26


class NTXent(Alignment):
    """Each hidden token has to tell its own target from all others of the batch, in float32.

    The cross-entropy of cosines over a temperature (SimCLR, eq. 1), from hidden tokens to
    targets, with the targets of all processes.
    """

    kind: Literal["nt-xent"] = "nt-xent"
    """Which loss it is."""
    temperature: PositiveFloat = 0.1
    """That cosines are divided by."""

    @property
    def compares_images(self) -> bool:
        return True

    def loss(self, projected: Tensor, tokens: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import normalize
        from torch.utils.checkpoint import checkpoint

        own = normalize(tokens, dim=-1).flatten(0, 1)
        targets, first = _of_all_processes(own)
        queries = normalize(projected, dim=-1).flatten(0, 1) / self.temperature
        places = torch.arange(first, first + len(own), device=own.device)
        size = max(1, MOST_SIMILARITIES // len(targets))
        parts: list[Tensor] = [
            checkpoint(_cross_entropy, some, targets, at, use_reentrant=False)
            for some, at in zip(queries.split(size), places.split(size), strict=True)
        ]
        losses: Tensor = torch.cat(parts).unflatten(0, tokens.shape[:2])
        return losses.mean(dim=1)


def _cross_entropy(queries: Tensor, targets: Tensor, places: Tensor) -> Tensor:
    """Of each query [n, D] among targets [N, D], given the place of its own; [n]."""
    from torch.nn.functional import cross_entropy

    losses: Tensor = cross_entropy(queries @ targets.T, places, reduction="none")
    return losses


def _of_all_processes(tokens: Tensor) -> tuple[Tensor, int]:
    """Frozen tokens [N / world, D] of all processes, [N, D], and where those of this one begin."""
    import torch

    if not torch.distributed.is_initialized():
        return tokens, 0
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    gathered = tokens.new_empty((world * len(tokens), *tokens.shape[1:]))
    torch.distributed.all_gather_into_tensor(gathered, tokens)
    return gathered, rank * len(tokens)
