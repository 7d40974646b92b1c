"""The output of REPA's own preprocessing: crops as PNG, and the moments of their latents."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources.folders import file_stamp, files_below, on_disk
from stages.encode.images.sources.names import (
    DATASET_JSON,
    MAX_JSON_BYTES,
    labelled_images,
    parse_labels,
)
from stages.encode.images.sources.source import FileSettings, LeftOut, Source, SourceError, is_image

# How `preprocessing/dataset_tools.py` of sihyun-yu/REPA calls its files.
IMAGES, MOMENTS = "images", "vae-sd"
IMAGE_NUMBER = re.compile(r"img(\d+)\.\w+$")
MOMENTS_NUMBER = re.compile(r"img-mean-std-(\d+)\.npy$")
# Mean and standard deviation of the four channels of Stable Diffusion's latents.
CHANNELS = 8


def repa_folder(dataset: FileSettings) -> Source:
    """A folder with `images/` that a `dataset.json` in or beside it labels, sorted by name.

    Moments are those in `vae-sd/`, if it is there; images and moments belong together that have
    the same number in their names. The folder of images alone is accepted, too.
    """
    path = dataset.path
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the one with {IMAGES}/ in it.")
    folder = path / IMAGES if (path / IMAGES).is_dir() else path
    listing = next((f for f in (folder / DATASET_JSON, path / DATASET_JSON) if f.is_file()), None)
    if listing is None:
        raise SourceError(f"{folder}: no {DATASET_JSON}. Plain class folders are imagefolder's.")
    left_out = LeftOut()
    names = files_below(folder, lambda name: is_image(name) or name == DATASET_JSON, left_out)
    order, labels, classes = labelled_images(names, _labels(listing), listing, left_out)
    keys = tuple(names[i] for i in order)
    has_moments = (path / MOMENTS).is_dir()
    return Source(
        keys=keys,
        labels=labels,
        classes=classes,
        read=lambda index: on_disk(folder, keys[index]).read_bytes(),
        stamp=lambda index: file_stamp(on_disk(folder, keys[index])),
        moments=_Moments(path / MOMENTS, keys, labels.tolist()) if has_moments else None,
        left_out=left_out,
    )


class _Moments:
    """The moments of the images called `keys`."""

    def __init__(self, folder: Path, keys: Sequence[str], labels: Sequence[int]) -> None:
        numbers = list(_by_number(keys, IMAGE_NUMBER, folder.parent / IMAGES))
        files = _by_number(
            files_below(folder, lambda name: name.endswith(".npy"), LeftOut()),
            MOMENTS_NUMBER,
            folder,
        )
        if lacking := files.keys() ^ set(numbers):
            raise SourceError(
                f"image or moments of number {min(lacking)} are missing, and {len(lacking) - 1} "
                "more",
                where=folder,
                remedy=f"Encode the images again, or move {folder.name} away.",
            )
        if (folder / DATASET_JSON).is_file():
            _check_labels(folder / DATASET_JSON, dict(zip(numbers, labels, strict=True)))
        self._folder = folder
        self._names = [files[number] for number in numbers]
        self._shape = _load(folder / self._names[0]).shape

    def __call__(self, index: int) -> npt.NDArray[np.float32]:
        """The moments of an image. Raises SourceError if they are missing or misshapen."""
        path = self._folder / self._names[index]
        moments = _load(path)
        if moments.shape != self._shape:
            raise SourceError(f"{path}: shape {moments.shape}, but others have {self._shape}.")
        return moments


def _by_number(names: Sequence[str], pattern: re.Pattern[str], where: Path) -> dict[int, str]:
    """The names of files by the number in them, in their order."""
    numbered: dict[int, str] = {}
    for name in names:
        match = pattern.search(name)
        if match is None or numbered.setdefault(int(match[1]), name) != name:
            raise SourceError(f"{where}: {name} has no number of its own (`{pattern.pattern}`).")
    return numbered


def _labels(listing: Path) -> dict[str, int]:
    with listing.open("rb") as file:
        return parse_labels(file.read(MAX_JSON_BYTES + 1), listing)


def _check_labels(listing: Path, labels: Mapping[int, int]) -> None:
    """Raises SourceError if moments are labelled otherwise than their images [number: label]."""
    stored = _labels(listing)
    names = _by_number(list(stored), MOMENTS_NUMBER, listing)
    for number, label in labels.items():
        if stored.get(names.get(number, "")) != label:
            raise SourceError(
                f"image {number} has label {label}, but its moments have not",
                where=listing,
                remedy="Are they of the same data set?",
            )


def _load(path: Path) -> npt.NDArray[np.float32]:
    """Moments [2C, h, w] from a file. Raises SourceError."""
    moments = load_array(path, axes=3)
    if len(moments) != CHANNELS:
        raise SourceError(f"{path}: expected [{CHANNELS}, h, w], got {list(moments.shape)}.")
    if (moments[CHANNELS // 2 :] < 0).any():
        raise SourceError(f"{path}: expected finite means and standard deviations.")
    return moments


def load_array(path: Path, axes: int) -> npt.NDArray[np.float32]:
    """An array of so many axes from a file. Raises SourceError."""
    try:
        # Mapped, because a header may claim more than there is.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise SourceError(f"{path} is missing or no array: {error}.") from error
    if not isinstance(stored, np.ndarray) or stored.dtype.name not in {"float16", "float32"}:
        raise SourceError(f"{path}: expected an array of float32, got {stored}.")
    if stored.ndim == axes + 1 and len(stored) == 1:
        stored = stored[0]
    if stored.ndim != axes:
        raise SourceError(f"{path}: expected {axes} axes, got {list(stored.shape)}.")
    values: npt.NDArray[np.float32] = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise SourceError(f"{path}: expected finite means and standard deviations.")
    return values
