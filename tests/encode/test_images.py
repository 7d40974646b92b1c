import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from odd_images import odd_files, plain, plain_crop, written
from PIL import Image, ImageFile

from stages.encode.images import crop as images
from stages.encode.images.crop import MAX_PIXELS, centre_crop, decode, square_crop

ODD_FILES = dict(odd_files())


@pytest.mark.parametrize("number", range(6))
def test_the_crop_is_that_of_adm_to_the_pixel(crops: Any, number: int) -> None:
    expected = crops[f"{number}.crop"].numpy()
    image = Image.fromarray(crops[f"{number}.image"].numpy())
    np.testing.assert_array_equal(centre_crop(image, expected.shape[0]), expected)


@pytest.mark.parametrize("number", range(6))
def test_the_square_crop_is_that_of_u_vit_to_the_pixel(square_crops: Any, number: int) -> None:
    expected = square_crops[f"{number}.crop"].numpy()
    image = Image.fromarray(square_crops[f"{number}.image"].numpy())
    np.testing.assert_array_equal(square_crop(image, expected.shape[0]), expected)
    same = np.array_equal(centre_crop(image, expected.shape[0]), expected)
    assert same == (image.size == expected.shape[:2])


@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_files_become_what_the_published_preprocessing_makes_of_them(
    name: str,
) -> None:
    content = ODD_FILES[name]
    image = decode(content)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(plain(content)))
    np.testing.assert_array_equal(centre_crop(image, 32), plain_crop(plain(content), 32))


def test_there_are_a_hundred_odd_files() -> None:
    assert len(ODD_FILES) >= 100


def test_exif_rotation_is_not_applied() -> None:
    assert decode(written("jpeg", {"exif": 6}, (40, 20), "RGB")).size == (40, 20)


def with_damaged_exif() -> bytes:
    """A JPEG file whose metadata claim to be longer than they are, as some of ImageNet do."""
    entry = struct.pack("<HHHII", 1, 0x010F, 2, 9999, 500)
    metadata = b"Exif\0\0II*\0\x08\0\0\0" + entry + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", len(metadata) + 2) + metadata
    content = written("jpeg", {}, (40, 20), "RGB")
    # In place of JFIF's header, which would spare Pillow a look into the metadata.
    return content[:2] + segment + content[20:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    size, crc = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return size + kind + content + crc


def png_of_size(width: int, height: int, *more: bytes) -> bytes:
    """A file of a few bytes that claims a size; `more` chunks follow the first."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(9)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + png_chunk(b"IEND", b"")


def harmless() -> dict[str, bytes]:
    mpo = bytearray(written("mpo", {"frames": 2}, (40, 20), "RGB"))
    # The tag with the number of images.
    tag = mpo.index(b"\x01\xb0", mpo.index(b"MPF\0"))
    mpo[tag : tag + 2] = b"\x09\xb0"
    return {
        "Corrupt EXIF|Tag data larger|Possibly corrupt": with_damaged_exif(),
        "Invalid APNG": png_of_size(2, 2, png_chunk(b"acTL", bytes(8))),
        "malformed MPO": bytes(mpo),
        "Palette images with Transparency": written(
            "png", {"transparency": bytes(9)}, (40, 20), "P"
        ),
    }


@pytest.mark.parametrize("message", list(harmless()))
def test_damaged_metadata_are_no_reason_to_warn(message: str) -> None:
    content = harmless()[message]
    with pytest.warns(UserWarning, match=message):
        expected = Image.open(io.BytesIO(content)).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(expected))


def test_no_thread_warns_whatever_the_others_do() -> None:
    contents = [*harmless().values()] * 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(8) as pool:
            assert {image.mode for image in pool.map(decode, contents)} == {"RGB"}


def test_the_filter_of_warnings_is_set_only_once() -> None:
    decode(written("png", {}, (2, 2), "L"))
    before = list(warnings.filters)
    decode(written("png", {}, (2, 2), "L"))
    assert before == warnings.filters
    assert warnings.filters[0] == images.HARMLESS_FILTER


@pytest.mark.parametrize("action", ["ignore", "error", "default"])
@pytest.mark.parametrize("size", [(9_500, 9_500), (20_000, 20_000), (89_478_486, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(action: Any, size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        tracemalloc.start()
        with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
            decode(png_of_size(*size))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_bomb_is_refused_where_pillow_was_told_to_allow_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ValueError, match="9500 x 9500 pixels, more than 89478485"):
        decode(png_of_size(9_500, 9_500))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (3, 9000)])
def test_an_image_too_long_to_be_resized_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"Resized to 256 px, it has \d+ x \d+ pixels, more than"):
        centre_crop(Image.new("RGB", size), 256)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "bmp", "ppm", "tiff"])
def test_a_file_that_was_cut_off_is_an_error(kind: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    content = written(kind, {}, (64, 64), "RGB")
    for size in (0, 5, len(content) // 3, len(content) * 9 // 10):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            decode(content[:size])


@pytest.mark.parametrize("kind", ["eps", "pdf", "ico", "tga"])
def test_formats_that_no_data_set_has_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="it is no image"):
        decode(written(kind, {}, (16, 16), "RGB"))
