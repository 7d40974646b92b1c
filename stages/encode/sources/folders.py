"""Class folders with image files below them."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.encode.sources.source import Source, SourceError, is_image, stamp_of


def image_folder(path: Path | None, _resolution: int) -> Source:
    """Class folders with image files below them, ordered and labelled as torchvision does."""
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the folder of class folders.")
    classes = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
    keys: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = images_below(path / name)
        keys += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    if not keys:
        raise SourceError(f"dataset.path: {path} has no images in class folders below it.")
    return Source(
        keys=tuple(keys),
        labels=np.array(labels, np.int32),
        classes=classes,
        read=lambda index: (path / keys[index]).read_bytes(),
        stamp=lambda index: file_stamp(path / keys[index]),
    )


def images_below(folder: Path) -> list[str]:
    """The images in a folder and the folders in it, as torchvision orders them."""
    return files_below(folder, is_image)


def files_below(folder: Path, is_wanted: Callable[[str], bool]) -> list[str]:
    """The names of some of the files in a folder and the folders in it."""
    names = []
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        inside = Path(parent).relative_to(folder)
        names += [(inside / file).as_posix() for file in sorted(files) if is_wanted(file)]
    return names


def file_stamp(path: Path) -> int:
    """A file's size and the time of its last change, as one number above 0."""
    status = path.stat()
    return stamp_of(status.st_size, status.st_mtime_ns)
