"""The freely licensed photographs that ship inside scikit-image.

Their licences stand in the docstrings of `skimage.data`; pictures without a clear
statement there (moon, motorcycle, lfw) are left out.
"""

from importlib.resources import files

from PIL import Image

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


def open_photograph(name: str, short_side: int) -> Image.Image:
    """The photograph in RGB, resized (Lanczos) so that its shorter side has `short_side` pixels."""
    folder = files("skimage.data")
    path = next(entry for entry in folder.iterdir() if entry.name in {f"{name}.png", f"{name}.jpg"})
    with path.open("rb") as stream:
        image = Image.open(stream).convert("RGB")
    scale = short_side / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
