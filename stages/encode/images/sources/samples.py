"""A data set that needs no download: crops of the freely licensed photographs inside scikit-image.

Their licences stand in the docstrings of `skimage.data`; pictures without a clear
statement there (moon, motorcycle, lfw) are left out.
"""

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stages.encode.images.sources.photo_captions import PHOTO_CAPTIONS
from stages.encode.images.sources.source import DatasetSettings, Source, SourceError

if TYPE_CHECKING:
    from stages.encode.images.sources.caption_files import Captions

CC0 = "CC0"
PUBLIC_DOMAIN = "public domain"

LICENCES = {
    "astronaut": PUBLIC_DOMAIN,
    "brick": CC0,
    "camera": CC0,
    "chelsea": CC0,
    "clock_motion": PUBLIC_DOMAIN,
    "coffee": CC0,
    "coins": PUBLIC_DOMAIN,
    "grass": CC0,
    "gravel": CC0,
    "hubble_deep_field": PUBLIC_DOMAIN,
    "ihc": PUBLIC_DOMAIN,
    "retina": CC0,
    "rocket": PUBLIC_DOMAIN,
}
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


def open_photograph(name: str, short_side: int) -> Image.Image:
    """The photograph in RGB, resized (Lanczos) so that its shorter side has `short_side` pixels."""
    folder = files("skimage.data")
    path = next(entry for entry in folder.iterdir() if entry.name in {f"{name}.png", f"{name}.jpg"})
    with path.open("rb") as stream:
        image = Image.open(stream).convert("RGB")
    scale = short_side / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


class EmbeddedSettings(DatasetSettings):
    """Of a source that brings its images along."""

    @property
    def path(self) -> None:
        """There is none to choose."""


def sample_photos(dataset: DatasetSettings) -> Source:
    """Overlapping square crops around the subjects of ten photographs inside scikit-image.

    The label is the photograph.
    """
    resolution = dataset.resolution
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
    captions: Captions = lambda index: PHOTO_CAPTIONS[classes[labels[index]]]  # noqa: E731
    return Source(keys, labels, classes, read, captions=captions)
