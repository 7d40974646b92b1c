"""Image files to the crops that every network sees."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# Others that Pillow reads are rare, and PostScript it hands to an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")
# Where Pillow begins to warn of decompression bombs; the largest image of ImageNet has 61 million.
MAX_PIXELS = 89_478_485
# What Pillow says of damaged metadata, on which no pixel depends.
HARMLESS = (
    "(Possibly )?corrupt EXIF|Metadata Warning|Tag (offset|data)|Truncated File Read"
    "|Image appears to be a malformed MPO|Invalid APNG"
)
HARMLESS_FILTER: Any = (
    "ignore",
    re.compile(HARMLESS, re.IGNORECASE),
    UserWarning,
    re.compile(r"PIL\."),
    0,
)


def decode(content: bytes) -> Image.Image:
    """The image of a file in RGB, as Pillow converts it; EXIF rotation is not applied.

    Raises OSError, ValueError, SyntaxError or Image.DecompressionBombError.
    """
    _filter_warnings()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_pixels(*image.size, "It")
            image.load()
            # A note that changes no pixel, but `convert` warns if it is more than one colour.
            image.info.pop("transparency", None)
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no image ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombWarning as error:
        raise Image.DecompressionBombError(str(error)) from None


def centre_crop(image: Image.Image, resolution: int) -> Pixels:
    """The ImageNet centre crop of ADM as [resolution, resolution, 3].

    Halves with a box filter while the shorter side is at least twice the resolution, then
    resizes that side to the resolution (bicubic) and crops the middle (Dhariwal & Nichol 2021;
    the preprocessing of DiT, SiT and REPA). Raises ValueError for an image so long that it
    would have too many pixels before it is cropped.
    """
    while min(image.size) >= 2 * resolution:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    _check_pixels(width, height, f"Resized to {resolution} px, it")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - resolution) // 2, (width - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]


def square_crop(image: Image.Image, resolution: int) -> Pixels:
    """The middle square of an image, resized (Lanczos) at once to [resolution, resolution, 3].

    As U-ViT's scripts crop MS-COCO (Bao et al. 2023), for which REPA's text-to-image is published.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


class Crop(NamedTuple):
    """A way to make squares of images. recipe: how recipes call it."""

    crop: Callable[[Image.Image, int], Pixels]
    recipe: str


# The names that `dataset.crop` takes.
CROPS = {
    "adm": Crop(centre_crop, "ADM centre crop"),
    "square": Crop(square_crop, "square, then Lanczos"),
}


def _check_pixels(width: int, height: int, what: str) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{what} has {width} x {height} pixels, more than {MAX_PIXELS}")


def _filter_warnings() -> None:
    """See to it that a bomb is an error and a harmless warning is none.

    Filters that were set later would go first, and `warnings.catch_warnings`, which takes them
    back, is not for threads.
    """
    if not warnings.filters or warnings.filters[0] != HARMLESS_FILTER:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", HARMLESS, UserWarning, r"PIL\.")
