"""Batches of crops: read and decoded by a pool of threads, ahead of the network that needs them.

B images, S their side in px, C latent channels, h and w the latent's sides.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cache import ledger
from cache.errors import DamagedCacheError, RepaCacheError, RowsChangedError
from cache.reader import PartialReader
from cache.rows import UNREADABLE, RowTable, content_hash
from stages.encode.images.crop import CROPS, Pixels, decode
from stages.encode.images.sources import Source

# Batches that are decoded while a network works on another one.
BATCHES_AHEAD = 2

# What reading, Pillow and cropping raise for files that are no images.
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

Tag = TypeVar("Tag")
Whole = TypeVar("Whole", covariant=True)


class ImageError(RepaCacheError):
    """An image cannot be decoded."""


def unreadable(key: str, error: Exception) -> ImageError:
    """The error for an image that cannot be read or decoded."""
    return ImageError(
        f'{key} cannot be decoded: {error}. Mend or remove it, or set dataset.on_error to "skip" '
        "to mark such images as invalid."
    )


@dataclass(frozen=True)
class Crops:
    """A batch.

    images: uint8 [B, 3, S, S]; valid: bool [B], False where an image could not be decoded, which
    is black then; latents: float32 [B, 2C, h, w] or [B, C, h, w] that the data set brought along,
    or None, and mirrored_latents those of the mirror images. Without images S is 0.
    """

    images: Tensor
    valid: npt.NDArray[np.bool_]
    latents: Tensor | None = None
    mirrored_latents: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, part: slice | npt.NDArray[np.intp]) -> "Crops":
        of_part = (one if one is None else one[part] for one in self._brought)
        return Crops(self.images[part], self.valid[part], *of_part)

    def to(self, device: torch.device) -> "Crops":
        """The same with its tensors on a device; pinned images are copied without waiting."""
        there = (one if one is None else one.to(device) for one in self._brought)
        return Crops(self.images.to(device, non_blocking=True), self.valid, *there)

    def mirrored(self) -> "Crops":
        """The mirror images."""
        return Crops(self.images.flip(-1), self.valid, self.mirrored_latents, self.latents)

    @property
    def _brought(self) -> tuple[Tensor | None, Tensor | None]:
        return self.latents, self.mirrored_latents

    @classmethod
    def of(cls, images: Tensor) -> "Crops":
        """A batch of images that are all valid."""
        return cls(images, np.ones(len(images), np.bool_))


@dataclass(frozen=True)
class CropReader:
    """Gives the crops of rows.

    source: the data set, or None if only stored crops are left of it; resolution: side of the
    crops in px; batch_size: images per batch; crop_kind: how they are made; skip: whether an image
    that cannot be decoded becomes an invalid row rather than an error; stored: the column of crops,
    if there is one, which is read instead of files as far as it is finished; with_latents: whether
    batches have the latents that the source brings along; pin_memory: whether images lie in memory
    from which a GPU copies by itself; failures: the reason by the key of an image that could not be
    decoded, filled on the way.
    """

    source: Source | None
    rows: RowTable
    resolution: int
    batch_size: int
    pool: Executor
    crop_kind: str = "adm"
    skip: bool = False
    stored: PartialReader | None = None
    with_latents: bool = False
    pin_memory: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    def batches(self, rows: Sequence[int]) -> Iterator[Crops]:
        """The crops of some rows, `batch_size` at a time."""
        return (crops for _, crops in self.tagged_batches([(None, rows)]))

    def tagged_batches(
        self, groups: Iterable[tuple[Tag, Sequence[int]]]
    ) -> Generator[tuple[Tag, Crops]]:
        """The crops of groups of rows, at most `batch_size` at a time, each with its group's tag.

        The next group is asked for when the last one is not yet through.
        """
        return read_ahead(groups, self.batch_size, lambda rows: _Batch(self, rows))

    def stored_rows(self, rows: Sequence[int]) -> frozenset[int]:
        """Which of some rows have their crop in the cache."""
        if self.stored is None:
            return frozenset()
        column = self.stored.column
        shard_of = {row: row // column.rows_per_shard for row in rows}
        missing = {s for s in set(shard_of.values()) if ledger.is_missing(column, self.rows, s)}
        return frozenset(row for row, shard in shard_of.items() if shard not in missing)

    def crop(self, row: int, *, is_stored: bool) -> "_Crop":
        """A row's crop. is_stored: whether the cache has it."""
        crop = self._stored_crop(row) if is_stored else None
        if crop is None:
            crop = self._decoded_crop(row)
        return self._with_latents(crop, row) if self.with_latents else crop

    def _stored_crop(self, row: int) -> "_Crop | None":
        """The crop in the cache; None if it is damaged, and its image can be decoded again."""
        if self.stored is None:
            return None
        try:
            arrays = self.stored.read(np.array([row]))
        except DamagedCacheError:
            if self.source is None:
                raise
            return None
        return _Crop(arrays["pixels"][0].transpose(1, 2, 0), bool(arrays["valid"][0]))

    def _decoded_crop(self, row: int) -> "_Crop":
        """The crop of a row's image, whose file must be the one that was indexed."""
        key = str(self.rows.key[row])
        if self.source is None:
            raise ImageError(f"{key}: its crop in the cache is missing, and so is its file.")
        pixels, digest = None, UNREADABLE
        problem: Exception = ValueError("its content changed")
        try:
            content = self.source.read(int(self.rows.source_index[row]))
            digest = content_hash(content)
            pixels = self._pixels(content)
        except IMAGE_ERRORS as error:
            problem = error
        if digest != self.rows.hash_of(row):
            raise RowsChangedError(
                f"{key} is not the file it was when the build began: {problem}",
                remedy="Run it again.",
            )
        if pixels is not None:
            return _Crop(pixels)
        if not self.skip:
            raise unreadable(key, problem) from problem
        self.failures[key] = str(problem)
        black = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        return _Crop(black, is_valid=False)

    def _pixels(self, content: bytes) -> Pixels:
        if self.source is not None and not self.source.has_images:
            return np.empty((0, 0, 3), np.uint8)
        return CROPS[self.crop_kind].crop(decode(content), self.resolution)

    def _with_latents(self, crop: "_Crop", row: int) -> "_Crop":
        source, place = self.source, int(self.rows.source_index[row])
        if source is None or source.latents is None:
            raise ImageError(f"{self.rows.key[row]}: the data set brings no latents along.")
        mirrored = source.mirrored_latents
        return replace(
            crop,
            latents=source.latents(place),
            mirrored_latents=mirrored(place) if mirrored is not None else None,
        )


@dataclass(frozen=True)
class _Crop:
    """pixels: [S, S, 3]; latents, mirrored_latents: [2C, h, w], [C, h, w] or None."""

    pixels: Pixels
    is_valid: bool = True
    latents: npt.NDArray[np.float32] | None = None
    mirrored_latents: npt.NDArray[np.float32] | None = None


class Pending(Protocol[Whole]):
    """A batch that is being read: a future, or several as one."""

    def result(self) -> Whole: ...

    def cancel(self) -> object: ...


def read_ahead(
    groups: Iterable[tuple[Tag, Sequence[int]]],
    batch_size: int,
    begin: Callable[[Sequence[int]], Pending[Whole]],
) -> Generator[tuple[Tag, Whole]]:
    """The batches of groups of rows, each with its group's tag. begin: reading one."""
    ahead: deque[tuple[Tag, Pending[Whole]]] = deque()
    try:
        for tag, rows in groups:
            for start in range(0, len(rows), batch_size):
                ahead.append((tag, begin(rows[start : start + batch_size])))
                if len(ahead) > BATCHES_AHEAD:
                    yield ahead[0][0], ahead[0][1].result()
                    ahead.popleft()
        while ahead:
            yield ahead[0][0], ahead[0][1].result()
            ahead.popleft()
    finally:
        for _, batch in ahead:
            batch.cancel()


class _Batch:
    """A batch that a pool is decoding: its crops, and the whole of them."""

    def __init__(self, reader: CropReader, rows: Sequence[int]) -> None:
        stored = reader.stored_rows(rows)
        self._crops = [
            reader.pool.submit(reader.crop, row, is_stored=row in stored) for row in rows
        ]
        # It waits for crops that the pool has begun before it, so that it cannot wait for ever.
        self._whole = reader.pool.submit(_assemble, self._crops, pin_memory=reader.pin_memory)

    def result(self) -> Crops:
        """The batch, once it is there."""
        return self._whole.result()

    def cancel(self) -> None:
        """Give up what has not begun."""
        self._whole.cancel()
        for crop in self._crops:
            crop.cancel()


def _assemble(parts: Sequence[Future[_Crop]], *, pin_memory: bool) -> Crops:
    crops = [part.result() for part in parts]
    # Wherever they come from, all batches have the same layout in memory: it decides how a
    # network computes, and with that the last bits.
    shape = (len(crops), *crops[0].pixels.shape)
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory)
    np.stack([crop.pixels for crop in crops], out=images.numpy())
    return Crops(
        images=images.permute(0, 3, 1, 2),
        valid=np.array([crop.is_valid for crop in crops]),
        latents=_stacked([crop.latents for crop in crops]),
        mirrored_latents=_stacked([crop.mirrored_latents for crop in crops]),
    )


def _stacked(parts: Sequence[npt.NDArray[np.float32] | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.from_numpy(np.stack(there)) if there else None
