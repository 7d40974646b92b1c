import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.encode.images import centre_crop, decode


@pytest.mark.parametrize("number", range(6))
def test_the_crop_is_that_of_adm_to_the_pixel(crops: Any, number: int) -> None:
    expected = crops[f"{number}.crop"].numpy()
    image = Image.fromarray(crops[f"{number}.image"].numpy())
    np.testing.assert_array_equal(centre_crop(image, expected.shape[0]), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("I" if mode == "I;16" else mode).save(stream, "tiff")
    assert decode(stream.getvalue()).mode == "RGB"


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    Image.new("RGB", (40, 20)).save(stream, "jpeg", exif=exif)
    assert decode(stream.getvalue()).size == (40, 20)
