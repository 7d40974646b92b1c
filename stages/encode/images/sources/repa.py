"""The output of REPA's and REPA-E's preprocessing: crops as PNG, and the moments of their latents.

REPA keeps them in folders, REPA-E in HDF5 files.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources.named_files import (
    ARRAY,
    FolderFiles,
    NamedFiles,
    checked_array,
    find_files,
    labels_in,
    labels_of,
)
from stages.encode.images.sources.names import DATASET_JSON, labelled_images
from stages.encode.images.sources.source import FileSettings, LeftOut, Source, SourceError

# How `preprocessing/dataset_tools.py` of sihyun-yu/REPA calls its files.
IMAGES = "images"
IMAGE_NUMBER = re.compile(r"img(\d+)\.\w+$")
MOMENTS_NUMBER = re.compile(r"img-mean-std-(\d+)\.npy$")


class RepaSettings(FileSettings):
    """Of the output of a preprocessing."""

    moments: str = "vae-sd"
    """The folder or HDF5 file, without its suffix, that holds the moments of the images' latents;
    it lies beside `images`. For REPA-E's as its `--vae-latents-name`."""


def repa_folder(dataset: RepaSettings) -> Source:
    """A folder with `images/` or `images.h5` that a `dataset.json` in or beside it labels.

    Sorted by name. Moments are those in the folder or file that the settings name, if it is there;
    images and moments belong together that have the same number in their names. The folder of
    images alone is accepted, too.
    """
    path = dataset.local_path
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the one with {IMAGES}/ in it.")
    left_out = LeftOut()
    files = find_files(path, IMAGES, left_out) or FolderFiles(path, left_out)
    labels, beside = labels_in(files), path / DATASET_JSON
    if labels is None and beside.is_file():
        labels = labels_of(beside)
    if labels is None:
        remedy = "Plain class folders are imagefolder's."
        raise SourceError(f"no {DATASET_JSON}", where=files.path, remedy=remedy)
    names = files.names
    order, numbers, classes = labelled_images(names, labels, files.path, left_out)
    keys = tuple(names[i] for i in order)
    moments = find_files(path, dataset.moments, LeftOut())
    return Source(
        keys=keys,
        labels=numbers,
        classes=classes,
        read=lambda index: files.read(keys[index]),
        stamp=lambda index: files.stamp(keys[index]),
        latents=_Moments(moments, keys, numbers.tolist()) if moments else None,
        left_out=left_out,
    )


class _Moments:
    """The moments of the images called `keys`."""

    def __init__(self, files: NamedFiles, keys: Sequence[str], labels: Sequence[int]) -> None:
        numbers = list(_by_number(keys, IMAGE_NUMBER, files.path.parent / IMAGES))
        arrays = [name for name in files.names if name.endswith(ARRAY)]
        named = _by_number(arrays, MOMENTS_NUMBER, files.path)
        if lacking := named.keys() ^ set(numbers):
            raise SourceError(
                f"image or moments of number {min(lacking)} are missing, and {len(lacking) - 1} "
                "more",
                where=files.path,
                remedy=f"Encode the images again, or move {files.path.name} away.",
            )
        if (stored := labels_in(files)) is not None:
            _check_labels(stored, dict(zip(numbers, labels, strict=True)), files.path)
        self._files = files
        self._names = [named[number] for number in numbers]
        self._shape = self._load(self._names[0]).shape

    def __call__(self, index: int) -> npt.NDArray[np.float32]:
        """The moments of an image. Raises SourceError if they are missing or misshapen."""
        moments = self._load(self._names[index])
        if moments.shape != self._shape:
            raise SourceError(
                f"{self._files.path / self._names[index]}: shape {moments.shape}, but others have "
                f"{self._shape}."
            )
        return moments

    def _load(self, name: str) -> npt.NDArray[np.float32]:
        where = self._files.path / name
        moments = checked_array(self._files.array(name), 3, where)
        channels = len(moments)
        if channels % 2 or not channels:
            raise SourceError(f"{where}: expected [2C, h, w], got {list(moments.shape)}.")
        if (moments[channels // 2 :] < 0).any():
            raise SourceError(f"{where}: expected finite means and standard deviations.")
        return moments


def _by_number(names: Sequence[str], pattern: re.Pattern[str], where: Path) -> dict[int, str]:
    """The names of files by the number in them, in their order."""
    numbered: dict[int, str] = {}
    for name in names:
        match = pattern.search(name)
        if match is None or numbered.setdefault(int(match[1]), name) != name:
            raise SourceError(f"{where}: {name} has no number of its own (`{pattern.pattern}`).")
    return numbered


def _check_labels(stored: Mapping[str, int], labels: Mapping[int, int], where: Path) -> None:
    """Raises SourceError if moments are labelled otherwise than their images [number: label]."""
    listing = where / DATASET_JSON
    names = _by_number(list(stored), MOMENTS_NUMBER, listing)
    for number, label in labels.items():
        if stored.get(names.get(number, "")) != label:
            raise SourceError(
                f"image {number} has label {label}, but its moments have not",
                where=listing,
                remedy="Are they of the same data set?",
            )
