"""Which rows a rank reads at a step: a pure function, so that resuming needs no state.

Training sees an endless stream of epochs, each an exact permutation of all rows; step `s`
takes positions `s * batch` to `(s + 1) * batch` of that stream, and every rank an equal,
contiguous part of them. The stream does not depend on the number of ranks.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def permutation(rows: int, seed: int, epoch: int = 0) -> Rows:
    """A permutation of `range(rows)` that is the same on every machine and version.

    Sorts raw Philox output, whose stream numpy guarantees never to change.
    """
    keys = np.random.Philox(key=[seed, epoch]).random_raw(rows)
    return np.argsort(keys, kind="stable")


def block_permutation(rows: int, seed: int, epoch: int, block: int) -> Rows:
    """A permutation of `range(rows)` that keeps `block` neighbours together."""
    blocks = permutation(math.ceil(rows / block), seed, epoch)
    shuffled = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    return shuffled[shuffled < rows]


def evenly(rows: Rows, count: int) -> Rows:
    """At most `count` of some rows, as evenly spread over them as whole places allow."""
    places = np.linspace(0, len(rows), min(count, len(rows)), endpoint=False, dtype=np.int64)
    return rows[places]


@lru_cache(maxsize=2)
def _epoch(rows: int, seed: int, epoch: int, block: int) -> Rows:
    shuffled = block_permutation(rows, seed, epoch, block)
    shuffled.flags.writeable = False
    return shuffled


def order(
    seed: int, step: int, rank: int, world: int, *, rows: int, batch: int, block: int = 1
) -> Rows:
    """The row numbers, [batch / world], that `rank` of `world` reads at `step`.

    rows: number of rows in the cache; batch: global batch size, divisible by `world`; block:
    rows that stay together, for storage that only reads fast in large pieces. Rows lie in a
    random permutation, so that a block is a random sample too, but the same one every epoch.
    """
    if rows < 1 or block < 1 or batch % world or not 0 <= rank < world:
        raise ValueError(f"no order for {rows=}, {batch=}, {block=}, {rank=}, {world=}")
    share = batch // world
    start = step * batch + rank * share
    epochs, positions = np.divmod(np.arange(start, start + share), rows)
    return np.concatenate(
        [_epoch(rows, seed, int(e), block)[positions[epochs == e]] for e in np.unique(epochs)]
    )
