"""What a data set is to stage one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from cache.errors import RepaCacheError
from stages.encode.images.sources.left_out import LeftOut

Labels = npt.NDArray[np.int32]

# What torchvision's ImageFolder lists, so that labels and order are the same.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Far above any photograph; what claims to be larger is a mistake or an attack.
MAX_IMAGE_BYTES = 256 << 20


class SourceError(RepaCacheError):
    """The data set is not where or what the configuration says."""


@dataclass(frozen=True)
class Source:
    """A data set of N images.

    keys: [N] unique names; labels: [N] int32, positions in `classes`; read: the file content of
    an image, by its position; stamp: a number that changes whenever that content does, or 0 if
    nothing but reading it tells; block_rows: how many consecutive images are stored together
    and cheap to read together; are_keys_places: whether keys may tell where images lie, so that
    they change when files are written anew; moments: float32 [2C, h, w], mean and standard
    deviation that a VAE gave for an image, if the data set brings them along; left_out: whatever
    else lies in the data set, so that no image is missing without a word.

    The three functions are safe to call from several threads, and in a forked process. They
    raise OSError or ValueError if one image cannot be had, SourceError if it is not only that
    one: if the data set is another than was opened, or moments are missing or misshapen.
    """

    keys: Sequence[str]
    labels: Labels
    classes: tuple[str, ...]
    read: Callable[[int], bytes]
    stamp: Callable[[int], int] = lambda _index: 0
    block_rows: int = 1
    are_keys_places: bool = False
    moments: Callable[[int], npt.NDArray[np.float32]] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


def is_image(name: str) -> bool:
    """Whether a file is listed as an image, by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def stamp_of(*numbers: int) -> int:
    """Sizes, times of change and the like as one number above 0."""
    text = b"%d" + b" %d" * (len(numbers) - 1)
    return xxhash.xxh3_64_intdigest(text % numbers) or 1
