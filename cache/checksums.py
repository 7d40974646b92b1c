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
    flat = rows.reshape(len(rows), -1)
    finite: npt.NDArray[np.bool_]
    if rows.dtype == np.float16:
        # By their bits, numbers lie below the infinities of either sign: many times faster than
        # asking half-precision numbers, and without memory for an answer each.
        bits = flat.view(np.uint16)
        finite = (bits.view(np.int16).max(axis=1) < 0x7C00) & (bits.max(axis=1) < 0xFC00)
    else:
        finite = np.isfinite(flat).all(axis=1)
    return finite
