"""Which rows a rank reads at a step: a pure function, so that resuming needs no state.

Training sees an endless stream of epochs, each an exact permutation of all rows; step `s`
takes positions `s * batch` to `(s + 1) * batch` of that stream, and every rank an equal,
contiguous part of them. The stream does not depend on the number of ranks.
"""

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


@lru_cache(maxsize=2)
def _epoch(rows: int, seed: int, epoch: int) -> Rows:
    shuffled = permutation(rows, seed, epoch)
    shuffled.flags.writeable = False
    return shuffled


def order(seed: int, step: int, rank: int, world: int, *, rows: int, batch: int) -> Rows:
    """The row numbers, [batch / world], that `rank` of `world` reads at `step`.

    rows: number of rows in the cache; batch: global batch size, divisible by `world`.
    """
    if rows < 1 or batch % world or not 0 <= rank < world:
        raise ValueError(f"no order for {rows=}, {batch=}, {rank=}, {world=}")
    share = batch // world
    start = step * batch + rank * share
    epochs, positions = np.divmod(np.arange(start, start + share), rows)
    return np.concatenate(
        [_epoch(rows, seed, int(e))[positions[epochs == e]] for e in np.unique(epochs)]
    )
