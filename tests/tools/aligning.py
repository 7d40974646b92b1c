"""Alignments alone, without a model: B images, T tokens, D features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.train.terms import TERMS
from stages.train.terms.seen import Seen, Streamed
from stages.train.terms.term import Alignment

ALIGNMENTS = [name for name, kind in TERMS.items() if issubclass(kind, Alignment)]


def make(name: str, **options: Any) -> Alignment:
    term = TERMS[name].model_validate({"kind": name, "encoder": "e", **options})
    assert isinstance(term, Alignment)
    return term


def aligned(
    term: Alignment,
    projected: Tensor,
    tokens: Tensor,
    level: Tensor | None = None,
    streams: Mapping[str, Streamed] | None = None,
) -> Tensor:
    """The losses of images, [B]. projected, tokens: [B, T, D]; level: of noise, [B]."""
    level = torch.zeros(len(tokens)) if level is None else level
    seen = Seen({term.tokens: tokens}, {}, level, level, streams or {}, {}, projected)
    (losses,) = term.losses(seen)
    return losses
