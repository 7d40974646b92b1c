"""Checksums of rows, and whether their values are numbers."""

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt


def row_checksums(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The crc32c of the bytes of each row, [B], of a C-contiguous array [B, ...]."""
    return np.array([google_crc32c.value(row) for row in rows], np.uint32)


def finite_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows, [B], of an array [B, ...] hold neither NaN nor infinity."""
    if rows.dtype.kind != "f":
        return np.ones(len(rows), np.bool_)
    axes = tuple(range(1, rows.ndim))
    if rows.dtype == np.float16:
        # The bits of the exponent: many times faster than asking half-precision numbers.
        finite = (rows.view(np.uint16) & 0x7C00) != 0x7C00
    else:
        finite = np.isfinite(rows)
    every: npt.NDArray[np.bool_] = finite.all(axis=axes)
    return every
