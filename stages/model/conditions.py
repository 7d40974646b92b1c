"""What a transformer is told of images: their classes, or their captions.

B images, X tokens of a caption, E their features.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Context(NamedTuple):
    """Captions of B images, as a text encoder sees them.

    tokens: [B, X, E]; seen: which of them the transformer attends to, bool [B, X], or None for all.
    """

    tokens: Tensor
    seen: Tensor | None = None


# Classes are numbers, [B], of which the number of classes means none.
Condition: TypeAlias = Tensor | Context


def mapped(given: Condition, function: Callable[[Tensor], Tensor]) -> Condition:
    """The same with every tensor, all of them [B, ...], as a function makes it."""
    if isinstance(given, Tensor):
        return function(given)
    return Context(function(given.tokens), None if given.seen is None else function(given.seen))


def joined_conditions(parts: Sequence[Condition]) -> Condition:
    """Those of several batches of images, of one kind, as one."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    contexts = [part for part in parts if isinstance(part, Context)]
    seen = [one.seen for one in contexts if one.seen is not None]
    return Context(torch.cat([one.tokens for one in contexts]), torch.cat(seen) if seen else None)
