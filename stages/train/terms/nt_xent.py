"""NT-Xent: hidden tokens that tell their own target from all others (REPA, table 3).

N tokens of all images, D features.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveFloat

from stages.train.terms.term import Alignment

if TYPE_CHECKING:
    from torch import Tensor


class NTXent(Alignment):
    """Each hidden token has to tell its own target from all others of the batch, in float32.

    The cross-entropy of cosines over a temperature (SimCLR, eq. 1), from hidden tokens to
    targets, with the targets of all processes. Where the model computes in half precision, a GPU
    multiplies them in TF32, which errs by a fifth of what half precision rounds off.
    """

    takes_half: ClassVar[bool] = True

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

        from stages.float32 import float32_products
        from stages.train.terms.cross_entropy import OwnTarget

        own = normalize(tokens, dim=-1).flatten(0, 1)
        targets, first = _of_all_processes(own)
        queries = normalize(projected.float(), dim=-1).flatten(0, 1) / self.temperature
        is_half = projected.dtype != torch.float32
        with float32_products(tf32=True) if is_half else nullcontext():
            of_tokens = OwnTarget.apply(queries, targets, first)  # type: ignore[no-untyped-call]
        losses: Tensor = of_tokens.unflatten(0, tokens.shape[:2])
        return losses.mean(dim=1)


def _of_all_processes(tokens: Tensor) -> tuple[Tensor, int]:
    """Frozen tokens [N / world, D] of all processes, [N, D], and where those of this one begin."""
    import torch

    if not torch.distributed.is_initialized():
        return tokens, 0
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    gathered = tokens.new_empty((world * len(tokens), *tokens.shape[1:]))
    torch.distributed.all_gather_into_tensor(gathered, tokens)
    return gathered, rank * len(tokens)
