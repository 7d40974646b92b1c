"""Odd images of every mode and format, and what the published preprocessing makes of them."""

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

# Ways to write a file: format, options of Pillow, and modes.
WAYS = (
    ("jpeg", {}, ("L", "RGB", "CMYK")),
    ("jpeg", {"progressive": True, "quality": 30, "subsampling": 2}, ("L", "RGB", "CMYK")),
    ("jpeg", {"exif": 6}, ("L", "RGB")),
    ("mpo", {"frames": 2}, ("RGB",)),
    ("png", {}, ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("png", {"transparency": 3}, ("L", "P")),
    ("png", {"transparency": bytes(range(0, 256, 4))}, ("P",)),
    ("png", {"transparency": (1, 2, 3)}, ("RGB",)),
    ("png", {"frames": 3}, ("L", "P", "RGB", "RGBA")),
    ("png", {"frames": 3, "default_image": True}, ("RGB",)),
    ("png", {"exif": 3}, ("RGB",)),
    ("gif", {}, ("1", "L", "P", "RGB", "RGBA")),
    ("gif", {"frames": 3}, ("L", "P", "RGB", "RGBA")),
    ("gif", {"transparency": 2}, ("L", "P")),
    ("webp", {}, ("L", "P", "RGB", "RGBA")),
    ("webp", {"lossless": True, "exif": 8}, ("RGB", "RGBA")),
    ("webp", {"frames": 3}, ("RGB", "RGBA")),
    ("bmp", {}, ("1", "L", "P", "RGB", "RGBA")),
    ("ppm", {}, ("1", "L", "RGB", "RGBA", "I", "F")),
    ("tiff", {}, ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")),
    ("tiff", {"compression": "tiff_lzw"}, ("1", "L", "P", "RGB", "RGBA", "I;16")),
    ("tiff", {"compression": "jpeg"}, ("L", "RGB", "CMYK")),
    ("tiff", {"frames": 2, "exif": 6}, ("L", "RGB")),
)
SIZES = ((50, 37), (1, 1), (7, 90), (3, 700), (131, 64))


def photograph(size: tuple[int, int], mode: str) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode in {"I", "F", "I;16"}:
        wide = noise[..., 0].astype(np.int32) * (1 if mode == "F" else 257)
        return Image.fromarray(wide.astype({"I": "i4", "F": "f4", "I;16": "u2"}[mode]))
    through = "RGB" if mode in {"P", "CMYK", "YCbCr", "LAB", "1"} else None
    return image.convert(through).convert(mode) if through else image.convert(mode)


def written(kind: str, options: dict[str, Any], size: tuple[int, int], mode: str) -> bytes:
    image = photograph(size, mode)
    options = dict(options)
    if frames := options.pop("frames", 0):
        turned = image.transpose(Image.Transpose.ROTATE_180)
        options |= {"save_all": True, "append_images": [turned] * (frames - 1)}
    if "exif" in options:
        exif = Image.Exif()
        exif[274] = options["exif"]
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def odd_files() -> Iterator[tuple[str, bytes]]:
    """More than a hundred files, with a name for each."""
    for way, (kind, options, modes) in enumerate(WAYS):
        for number, mode in enumerate(modes):
            for size in (SIZES[0], SIZES[1 + number % 4]):
                # Only names of images are listed, whatever is in them.
                suffix = {"mpo": "jpg", "gif": "png"}.get(kind, kind)
                name = f"{way}-{kind}-{mode}-{size[0]}x{size[1]}.{suffix}".replace(";", "")
                yield name, written(kind, options, size, mode)


def plain(content: bytes) -> Image.Image:
    """The line of the published preprocessing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(content)).convert("RGB")


def plain_crop(image: Image.Image, side: int) -> np.ndarray:
    """What ADM's crop is, said once more."""
    while min(image.size) >= side * 2:
        image = image.resize(tuple(x // 2 for x in image.size), Image.Resampling.BOX)
    factor = side / min(image.size)
    image = image.resize(tuple(round(x * factor) for x in image.size), Image.Resampling.BICUBIC)
    left, top = ((x - side) // 2 for x in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side)))
