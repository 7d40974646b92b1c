"""Class folders with image files below them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.encode.sources.archives import opened_ahead
from stages.encode.sources.key_list import KeyList
from stages.encode.sources.source import Source, SourceError, is_image, stamp_of


def image_folder(path: Path | None, _resolution: int) -> Source:
    """Class folders with image files below them, ordered and labelled as torchvision does."""
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the folder of class folders.")
    classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))

    def listed(name: str) -> npt.NDArray[Any]:
        names = [f"{name}/{image}" for image in images_below(path / name)]
        return np.array(names, np.dtypes.StringDType())

    listings = list(opened_ahead(classes, listed, "folders"))
    if not any(map(len, listings)):
        raise SourceError(f"dataset.path: {path} has no images in class folders below it.")
    keys = KeyList(np.concatenate(listings))
    return Source(
        keys=keys,
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, listings))),
        classes=classes,
        read=lambda index: (path / keys[index]).read_bytes(),
        stamp=lambda index: file_stamp(f"{path}/{keys[index]}"),
    )


def images_below(folder: Path) -> list[str]:
    """The images in a folder and the folders in it, as torchvision orders them."""
    return files_below(folder, is_image)


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> list[str]:
    """The names of some of the files in a folder and the folders in it."""
    names: list[str] = []
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        # Plain strings: a path object for each of a million files takes half a minute.
        inside = "" if parent == str(folder) else f"{Path(parent).relative_to(folder).as_posix()}/"
        names += [f"{inside}{file}" for file in sorted(files) if is_wanted(file)]
    return names


def file_stamp(path: Path | str) -> int:
    """A file's size and the time of its last change, as one number above 0."""
    # A path object would take twice as long.
    status = os.stat(path)  # noqa: PTH116
    return stamp_of(status.st_size, status.st_mtime_ns)
