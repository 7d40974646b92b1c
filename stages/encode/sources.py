"""Data sets: each gives a stable listing of keys and labels, and the bytes of any image.

To add a source, write a function and name it in `SOURCES`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from cache.errors import RepaCacheError
from stages.encode.photographs import open_photograph

# What torchvision's ImageFolder lists, so that labels and order are the same.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
)

# Where the subject of each photograph is, as fractions of its width and height.
SAMPLE_PHOTOGRAPHS = {
    "astronaut": (0.43, 0.24),
    "brick": (0.5, 0.5),
    "camera": (0.43, 0.35),
    "chelsea": (0.57, 0.42),
    "clock_motion": (0.5, 0.5),
    "coffee": (0.5, 0.42),
    "coins": (0.5, 0.5),
    "ihc": (0.5, 0.5),
    "retina": (0.32, 0.5),
    "rocket": (0.5, 0.6),
}
SAMPLE_SHORT_SIDE = 128
# Crops per photograph along each side, and the px from one to the next.
SAMPLE_GRID = 11
SAMPLE_STEP = 1


class SourceError(RepaCacheError):
    """The data set is not where or what the configuration says."""


@dataclass(frozen=True)
class Source:
    """A data set of N images.

    keys: [N] unique names; labels: [N] int32, positions in `classes`; read: the file content of
    an image, by its position; stamp: a number that changes whenever that content does, or 0 if
    nothing but reading it tells. Both are safe to call from several threads.
    """

    keys: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    read: Callable[[int], bytes]
    stamp: Callable[[int], int] = lambda _index: 0
    block_rows: int = 1
    moments: Callable[[int], npt.NDArray[np.float32]] | None = None


def image_folder(path: Path | None, _resolution: int) -> Source:
    """Class folders with image files below them, ordered and labelled as torchvision does."""
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the folder of class folders.")
    classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    keys: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(path / name, followlinks=True)):
            images = [file for file in sorted(files) if Path(file).suffix.lower() in IMAGE_SUFFIXES]
            keys += [(Path(folder) / image).relative_to(path).as_posix() for image in images]
            labels += [label] * len(images)
    if not keys:
        raise SourceError(f"dataset.path: {path} has no images in class folders below it.")
    return Source(
        keys=tuple(keys),
        labels=np.array(labels, np.int32),
        classes=classes,
        read=lambda index: (path / keys[index]).read_bytes(),
        stamp=lambda index: _file_stamp(path / keys[index]),
    )


def _file_stamp(path: Path) -> int:
    """A file's size and the time of its last change, as one number above 0."""
    status = path.stat()
    return xxhash.xxh3_64_intdigest(f"{status.st_size} {status.st_mtime_ns}".encode()) or 1


def sample_photos(_path: Path | None, resolution: int) -> Source:
    """Overlapping square crops around the subjects of ten photographs inside scikit-image.

    The label is the photograph.
    """
    reach = resolution + SAMPLE_STEP * (SAMPLE_GRID - 1)
    if reach > SAMPLE_SHORT_SIDE:
        raise SourceError(
            f"dataset.resolution: sample-photos has crops of at most "
            f"{SAMPLE_SHORT_SIDE - reach + resolution} px, got {resolution}."
        )
    photographs = [open_photograph(name, SAMPLE_SHORT_SIDE) for name in SAMPLE_PHOTOGRAPHS]
    corners: list[tuple[int, int, int]] = []
    for label, (image, (x, y)) in enumerate(
        zip(photographs, SAMPLE_PHOTOGRAPHS.values(), strict=True)
    ):
        left = min(max(round(x * image.width - reach / 2), 0), image.width - reach)
        top = min(max(round(y * image.height - reach / 2), 0), image.height - reach)
        shifts = range(0, SAMPLE_STEP * SAMPLE_GRID, SAMPLE_STEP)
        corners += [(label, left + dx, top + dy) for dy in shifts for dx in shifts]

    def read(index: int) -> bytes:
        """A crop as PPM, whose bytes depend on no codec's version."""
        label, left, top = corners[index]
        crop = photographs[label].crop((left, top, left + resolution, top + resolution))
        return f"P6 {resolution} {resolution} 255\n".encode() + crop.tobytes()

    classes = tuple(SAMPLE_PHOTOGRAPHS)
    keys = tuple(f"{classes[label]}/{left}-{top}" for label, left, top in corners)
    labels = np.array([label for label, _, _ in corners], np.int32)
    return Source(keys, labels, classes, read)


# The names that `dataset.source` takes.
SOURCES: Mapping[str, Callable[[Path | None, int], Source]] = {
    "imagefolder": image_folder,
    "sample-photos": sample_photos,
}
# Those that need no `dataset.path`.
EMBEDDED_SOURCES = frozenset({"sample-photos"})
