"""What a term sees of a step, and of which sizes that is.

B images of a batch, T tokens, W the transformer's width, D an encoder's features, C latent
channels, h and w the latent's sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from stages.model.transformer_config import TransformerConfig

# Images of a step and what is drawn for them are asked for by name.
Named = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Shapes:
    """The sizes that a term depends on.

    width: W; latent: (C, h, w); arrays: of an image, by the names of the arrays that the term
    reads; model: of the transformer, so far as terms before have not changed it.
    """

    width: int
    latent: tuple[int, ...]
    arrays: Mapping[str, tuple[int, ...]]
    model: TransformerConfig | None = None


class Posed(NamedTuple):
    """What is diffused of B images, such as latents [B, C, h, w]; all are of one shape.

    noisy: the model's input; target: what its prediction is to be.
    """

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    target: Tensor


class Streamed(NamedTuple):
    """The same, with the model's prediction, which for DiT has a variance beside each channel."""

    clean: Tensor
    noise: Tensor
    noisy: Tensor
    target: Tensor
    prediction: Tensor


@dataclass(frozen=True)
class Seen:
    """What a term sees of a step.

    batch: the cached arrays that it reads, float32, besides `moments` [B, 2C, h, w] and `labels`
    [B]; drawn: what it asked for, besides `posterior` and `noise` [B, C, h, w]; time: [B], in the
    unit of the model; level: [B], the same from 0, clean, to 1, noise; streams: what is diffused,
    by the names of `stages.model.streams`; hidden: tokens [B, T, W] of patches behind blocks, by
    the blocks' numbers from 1; projected: what the term's own module made of hidden tokens;
    taught: those of the teacher that the term asks for, without gradient.
    """

    batch: Named
    drawn: Named
    time: Tensor
    level: Tensor
    streams: Mapping[str, Streamed]
    hidden: Mapping[int, Tensor]
    projected: Tensor | None = None
    taught: Mapping[int, Tensor] = field(default_factory=dict)
