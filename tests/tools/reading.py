"""Reading rows of arrays."""

import numpy as np
from hypothesis import strategies as st

from cache.arrays import RowReader, aligned_buffer

ROW_LISTS = st.lists(st.integers(0, 20), max_size=30)


def read(source: RowReader, rows: list[int]) -> np.ndarray:
    out = aligned_buffer((len(rows), *source.shape[1:]), source.dtype)
    source.read(np.array(rows, np.int64), out)
    return out
