"""The output of U-ViT's scripts for MS-COCO: moments, captions' tokens, and the images beside them.

As `scripts/extract_mscoco_feature.py` of baofff/U-ViT writes them: `{i}.npy`, mean and
log-variance [2C, h, w]; `{i}_{k}.npy`, the tokens [X, E] of caption k; `empty_context.npy` in the
folder above or in the same. Images are `{i}.png`, which REPA's text-to-image wants beside them.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.encode.images.sources.folders import file_stamp, files_below
from stages.encode.images.sources.named_files import checked_array, stored_array
from stages.encode.images.sources.names import of_one_class
from stages.encode.images.sources.source import (
    Contexts,
    FileSettings,
    LeftOut,
    Reason,
    Source,
    SourceError,
)

IMAGE = re.compile(r"(\d+)\.png")
MOMENTS = re.compile(r"(\d+)\.npy")
CONTEXT = re.compile(r"(\d+)_(\d+)\.npy")
EMPTY = "empty_context.npy"
# Between which the posterior's log-variance is held, as in diffusers.
LOG_VARIANCES = (-30.0, 20.0)


def u_vit_folder(dataset: FileSettings) -> Source:
    """A folder of features; images and features belong together that have the same number."""
    path = dataset.local_path
    if path is None or not path.is_dir():
        raise SourceError(f"dataset.path: no folder {path}. Name the one with 0.npy in it.")
    left_out = LeftOut()
    names = files_below(path, lambda name: name.endswith((".npy", ".png")), left_out)
    moments, images = (
        {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
        for pattern in (MOMENTS, IMAGE)
    )
    if not moments:
        raise SourceError(f"dataset.path: {path} has no features as 0.npy.")
    if lacking := moments ^ images:
        number = min(lacking)
        what = "image" if number in moments else "features"
        raise SourceError(
            f"number {number} has no {what}, and {len(lacking) - 1} more lack one of both",
            where=path,
            remedy=f"Put the crop of each image beside its features: {number}.png and "
            f"{number}.npy.",
        )
    numbers = sorted(moments)
    captions = _captions(names)
    for name in names:
        if name != EMPTY and not any(p.fullmatch(name) for p in (IMAGE, MOMENTS, CONTEXT)):
            left_out.add(Reason.OTHER, name)
    labels, classes = of_one_class(len(numbers), path)
    return Source(
        keys=tuple(f"{number}.png" for number in numbers),
        labels=labels,
        classes=classes,
        read=lambda index: (path / f"{numbers[index]}.png").read_bytes(),
        stamp=lambda index: file_stamp(path / f"{numbers[index]}.png"),
        latents=lambda index: _moments(path / f"{numbers[index]}.npy"),
        captions=lambda index: captions.get(numbers[index], ()),
        contexts=Contexts(
            read=lambda name: _load(path / f"{name}.npy", axes=2),
            empty=lambda: _load(_empty(path), axes=2),
        ),
        left_out=left_out,
    )


def _captions(names: Sequence[str]) -> dict[int, list[str]]:
    """The files of each image's captions, without their suffix, by its number."""
    found: dict[int, list[int]] = defaultdict(list)
    for name in names:
        if match := CONTEXT.fullmatch(name):
            found[int(match[1])].append(int(match[2]))
    return {image: [f"{image}_{k}" for k in sorted(own)] for image, own in found.items()}


def _empty(path: Path) -> Path:
    places = [path / EMPTY, path.parent / EMPTY]
    return next((place for place in places if place.is_file()), places[1])


def _load(path: Path, axes: int) -> npt.NDArray[np.float32]:
    """An array of so many axes from a file. Raises SourceError."""
    return checked_array(stored_array(path), axes, path)


def _moments(path: Path) -> npt.NDArray[np.float32]:
    """Mean and standard deviation, [2C, h, w], of a file of means and log-variances."""
    mean, log_variance = np.split(_load(path, axes=3), 2)
    return np.concatenate([mean, np.exp(0.5 * np.clip(log_variance, *LOG_VARIANCES))])
