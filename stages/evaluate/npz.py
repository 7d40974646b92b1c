"""Files in the format of ADM's evaluation: images as one array, never held in memory whole.

N images, S their side in px.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from cache.errors import RepaCacheError
from cache.files import atomic_file

IMAGES, LABELS = "arr_0", "arr_1"
# How files that are torn or of another kind fail.
NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class NpzError(RepaCacheError):
    """A file is no npz, or does not hold what it should."""


def write_images(
    path: Path, images: Iterable[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]
) -> None:
    """Write images, uint8 [S, S, 3] each, as `arr_0` [N, S, S, 3] and labels [N] as `arr_1`."""
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as entry:
            for number, pixels in enumerate(images):
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False}
                    header["shape"] = (len(labels), *pixels.shape)
                    npy.write_array_header_1_0(entry, header)
                entry.write(pixels.tobytes())
        with archive.open(f"{LABELS}.npy", "w") as entry:
            npy.write_array(entry, labels)


class NpzFile:
    """A npz file whose arrays are read whole or by rows.

    Raises NpzError if it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = {name.removesuffix(".npy") for name in archive.namelist()}
        except NPZ_ERRORS as error:
            raise NpzError(f"{path} is no npz file: {error}.") from error

    def array(self, name: str) -> npt.NDArray[Any]:
        """A whole array."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                values: npt.NDArray[Any] = file[name]
        except NPZ_ERRORS as error:
            raise NpzError(f"{self.path}: cannot read {name!r}: {error}.") from error
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array of uint8 in C order."""
        with self._opened(name) as (_, shape):
            return shape

    def rows(self, name: str, rows: range, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Some neighbouring rows of an array of uint8, at most `batch` at a time."""
        with self._opened(name) as (entry, (_, *row_shape)):
            row_bytes = int(np.prod(row_shape))
            entry.seek(entry.tell() + rows.start * row_bytes)
            for start in range(rows.start, rows.stop, batch):
                count = min(batch, rows.stop - start)
                content = entry.read(count * row_bytes)
                if len(content) < count * row_bytes:
                    raise NpzError(f"{self.path}: {name!r} ends in row {start}.")
                yield np.frombuffer(content, np.uint8).reshape(count, *row_shape)

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
        """An array's values as bytes, and its shape."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as entry:
                version = npy.read_magic(entry)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, is_fortran, dtype = read(entry)
                if dtype != np.uint8 or is_fortran:
                    raise NpzError(f"{self.path}: {name!r} is {dtype}, expected uint8 in C order.")
                yield entry, shape
        except NPZ_ERRORS as error:
            raise NpzError(f"{self.path}: cannot read {name!r}: {error}.") from error
