"""Images to be measured: a folder of files, one file in ADM's format, or the cached data set.

N images, B of a batch, S their side in px.
"""

import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from cache.errors import RepaCacheError
from cache.files import atomic_file
from cache.reader import Cache
from stages.encode.build_settings import EncodeSettings
from stages.encode.images.crop import CROPS, Pixels, decode
from stages.encode.images.crop_batches import IMAGE_ERRORS
from stages.encode.images.crop_sources import open_crops, open_source
from stages.encode.images.sources import SourceError
from stages.encode.images.sources.folders import images_below, on_disk

IMAGES, LABELS = "arr_0", "arr_1"
# How files that are torn or of another kind fail.
NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# Batches that are decoded while a network works on another one.
BATCHES_AHEAD = 2


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
            raise NpzError(f"cannot read {name!r}: {error}.", where=self.path) from error
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
                    raise NpzError(f"{name!r} ends in row {start}.", where=self.path)
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
                    raise NpzError(
                        f"{name!r} is {dtype}, expected uint8 in C order.", where=self.path
                    )
                yield entry, shape
        except NPZ_ERRORS as error:
            raise NpzError(f"cannot read {name!r}: {error}.", where=self.path) from error


class ImageSetError(RepaCacheError):
    """Images to be measured are missing, or are not what they should be."""


class ImageSet(Protocol):
    """Images in a stable order.

    side: in px.
    """

    @property
    def side(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        """Some neighbouring images, uint8 [B, 3, S, S], about `size` at a time."""


class FolderImages:
    """The images in a folder and the folders in it, numbers in their names in order.

    side: to which all are cropped as data sets are; by default they have to be square and of one
    side. count: of the first images, by default all; crop: a name of `stages.encode.images.crop`.
    Raises ImageSetError if there are none.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        side: int | None = None,
        count: int | None = None,
        crop: str = "adm",
    ) -> None:
        self._crop = CROPS[crop].crop
        names = sorted(images_below(folder), key=_natural)[:count]
        self._paths = [on_disk(folder, name) for name in names]
        if not self._paths:
            raise ImageSetError(f"{folder} has no images.")
        self._threads = threads
        self._crops = side is not None
        self.side = side or _decoded(self._paths[0]).height

    def __len__(self) -> int:
        return len(self._paths)

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        ahead: deque[list[Future[Pixels]]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(rows.start, rows.stop, size):
                part = self._paths[start : min(start + size, rows.stop)]
                ahead.append([pool.submit(self._pixels, path) for path in part])
                if len(ahead) > BATCHES_AHEAD:
                    yield _stacked([future.result() for future in ahead.popleft()])
            for batch in ahead:
                yield _stacked([future.result() for future in batch])

    def _pixels(self, path: Path) -> Pixels:
        image = _decoded(path)
        if self._crops:
            return self._crop(image, self.side)
        if image.size != (self.side, self.side):
            raise ImageSetError(
                f"{path} has {image.width} x {image.height} px, expected {self.side} x {self.side}."
            )
        return np.asarray(image)


class NpzImages:
    """The images of a file in ADM's format. Raises ImageSetError if they are not square."""

    def __init__(self, file: NpzFile) -> None:
        self._file = file
        shape = file.shape(IMAGES)
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise ImageSetError(
                f"{IMAGES!r} has the shape {list(shape)}, expected [N, S, S, 3].", where=file.path
            )
        self._images, self.side = shape[:2]

    def __len__(self) -> int:
        return self._images

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        for pixels in self._file.rows(IMAGES, rows, size):
            yield torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)


class NoiseImages:
    """Images whose pixels are random, the same everywhere. images: how many."""

    def __init__(self, side: int, images: int) -> None:
        self.side = side
        self._images = images

    def __len__(self) -> int:
        return self._images

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        for start in range(rows.start, rows.stop, size):
            part = range(start, min(start + size, rows.stop))
            yield torch.stack([self._pixels(seed) for seed in part])

    def _pixels(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (3, self.side, self.side)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class CachedImages:
    """The crops of a cached data set that could be decoded, read where the build read them."""

    def __init__(self, settings: EncodeSettings, column: str) -> None:
        self._settings = settings
        self._cache = Cache(settings.cache.path)
        self._rows = np.flatnonzero(self._cache.column(column).valid)
        self.side = settings.dataset.resolution

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, rows: range, size: int) -> Iterator[Tensor]:
        settings = self._settings
        settings = settings.model_copy(
            update={"build": settings.build.model_copy(update={"batch_size": size})}
        )
        with ThreadPoolExecutor(settings.build.decoding_threads()) as pool:
            try:
                source = open_source(settings)
            except SourceError as error:
                raise ImageSetError(
                    f"{error} The images of {self._cache.path} are compared with by default: name "
                    "others, or statistics, with --reference."
                ) from error
            crops = open_crops(settings, source, self._cache.rows, pool, torch.device("cpu"))
            for batch in crops.batches(self._rows[rows.start : rows.stop].tolist()):
                yield batch.images


def _stacked(pixels: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def _decoded(path: Path) -> Image.Image:
    try:
        return decode(path.read_bytes())
    except IMAGE_ERRORS as error:
        raise ImageSetError(f"{path} cannot be decoded: {error}.") from error


def _natural(name: str) -> str:
    """A key that puts 10.png behind 9.png."""
    return re.sub(r"\d+", lambda number: number[0].zfill(20), name)
