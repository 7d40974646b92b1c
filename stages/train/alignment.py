"""Alignment of hidden tokens with an encoder's tokens.

To add a way, write a class and name it in `ALIGNMENTS`. torch is imported where it computes, since
a configuration is checked against the names here. B images, T tokens, D features, N the tokens of
all images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.train.train_settings import TrainSettings

# Entries of a matrix of similarities that are held at once: 256 MB.
MOST_SIMILARITIES = 1 << 26


class Alignment(ABC):
    """A loss between projected hidden tokens and an encoder's tokens at the same places.

    needs_lengths: whether the encoder's tokens must be as they were; if not, each may be scaled,
    which spares tokens stored as int8 their scales. compares_images: whether the loss of an image
    depends on the others of its batch, which then cannot be computed in parts.
    """

    needs_lengths = False
    compares_images = False

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @staticmethod
    def projector(width: int, hidden: int, features: int) -> nn.Module:
        """From hidden tokens [B, T, width] to [B, T, features]."""
        from stages.model.projectors import MLPProjector

        return MLPProjector(width, hidden, features)

    @abstractmethod
    def __call__(self, projected: Tensor, tokens: Tensor) -> Tensor:
        """The loss of each image, float32 [B]. projected, tokens: [B, T, D]."""


class NegativeCosine(Alignment):
    """Minus the mean cosine between tokens at the same place (REPA, eq. 8), in float32."""

    def __call__(self, projected: Tensor, tokens: Tensor) -> Tensor:
        from torch.nn.functional import cosine_similarity

        cosines = cosine_similarity(projected.float(), tokens.float(), dim=-1, eps=1e-12)
        return -cosines.mean(dim=1)


class NTXent(Alignment):
    """Each hidden token has to tell its own target from all others of the batch, in float32.

    The cross-entropy of cosines over a temperature (SimCLR, eq. 1), from hidden tokens to
    targets, with the targets of all processes.
    """

    compares_images = True

    def __call__(self, projected: Tensor, tokens: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import normalize
        from torch.utils.checkpoint import checkpoint

        own = normalize(tokens.float(), dim=-1).flatten(0, 1)
        targets, first = _of_all_processes(own)
        queries = normalize(projected.float(), dim=-1).flatten(0, 1) / self.settings.temperature
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


# The names that `train.alignment` takes.
ALIGNMENTS: dict[str, type[Alignment]] = {"repa": NegativeCosine, "nt-xent": NTXent}
