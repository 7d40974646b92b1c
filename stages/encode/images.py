"""Image files to the crops that every network sees."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def decode(content: bytes) -> Image.Image:
    """The image of a file in RGB, as Pillow converts it; EXIF rotation is not applied."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def centre_crop(image: Image.Image, resolution: int) -> Pixels:
    """The ImageNet centre crop of ADM as [resolution, resolution, 3].

    Halves with a box filter while the shorter side is at least twice the resolution, then
    resizes that side to the resolution (bicubic) and crops the middle (Dhariwal & Nichol 2021;
    the preprocessing of DiT, SiT and REPA).
    """
    while min(image.size) >= 2 * resolution:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - resolution) // 2, (width - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]
