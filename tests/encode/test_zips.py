import gc
import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import packing
import pytest
from packing import write_zip

from stages.encode.images.sources import Source, SourceError

IMAGE = b"an image that is not zeros"
IMAGES = {"a/1.jpg": b"one" * 9, "a/2.jpg": b"two" * 9, "b/1.jpg": b"three" * 9}
# Where flags, CRC-32, sizes and the offset of the header are in an entry of the directory.
ENTRY, FLAGS, CRC, PACKED, SIZE, OFFSET = b"PK\1\2", 8, 16, 20, 24, 42


def opened(path: Path) -> Source:
    return packing.opened("zip", path)


def patch(path: Path, entry: int, place: int, kind: str, value: int) -> None:
    """Write a number into an entry of the directory."""
    content = bytearray(path.read_bytes())
    at = -1
    for _ in range(entry + 1):
        at = content.index(ENTRY, at + 1)
    struct.pack_into(kind, content, at + place, value)
    path.write_bytes(content)


def labelled(path: Path, labels: object) -> Path:
    return write_zip(path, {**IMAGES, "dataset.json": json.dumps({"labels": labels}).encode()})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_written_in_any_way_are_read(method: int, tmp_path: Path) -> None:
    stream = io.BytesIO()
    # A stream that cannot go back gets its sizes behind the data.
    stream.seekable = lambda: False
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.comment = b"made by hand"
        archive.writestr("./", b"")
        archive.writestr("a/", b"")
        for name, content in IMAGES.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(content)
        archive.writestr("a/empty.jpg", b"")
        archive.writestr("__MACOSX/a/._1.jpg", b"not an image")
    path = tmp_path / "x.zip"
    path.write_bytes(b"an executable that unpacks itself" + stream.getvalue())
    source = opened(path)
    found = dict(zip(source.keys, map(source.read, range(4)), strict=True))
    assert found == {**IMAGES, "a/empty.jpg": b""}


@pytest.mark.parametrize(
    "name", ["/a/x.jpg", "C:/x.jpg", "c:x.jpg", "a\\x.jpg", "../x.jpg", "a/../../x.jpg", "a/.."]
)
def test_a_name_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is refused"):
        opened(write_zip(tmp_path / "x.zip", {**IMAGES, name: b""}))
    with pytest.raises(SourceError, match=r"dataset\.json: the name .* is refused"):
        opened(labelled(tmp_path / "x.zip", [[name, 0]]))


def test_a_name_with_nul_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES)
    path.write_bytes(path.read_bytes().replace(b"a/1.jpg", b"a/\0.jpg"))
    with pytest.raises(SourceError, match="is refused"):
        opened(path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {**IMAGES, "a/é.jpg": b""})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(SourceError, match=r"x\.zip: the name b'a/\\xff\\xff\.jpg' is refused"):
        opened(path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES)
    patch(path, 1, FLAGS, "<H", 1)
    with pytest.raises(SourceError, match=r"a/2\.jpg is encrypted"):
        opened(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compression_is_refused(method: int, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="zip -0"):
        opened(write_zip(tmp_path / "x.zip", IMAGES, method))


def test_links_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("a/1.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match=r"a/1\.jpg is a link"):
        opened(tmp_path / "x.zip")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", "one")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/1.jpg", "other")
    with pytest.raises(SourceError, match=r"two of 'a/1\.jpg'"):
        opened(tmp_path / "x.zip")


@pytest.mark.parametrize("place", [PACKED, SIZE])
def test_a_member_that_claims_to_be_huge_is_refused(place: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES, zipfile.ZIP_DEFLATED)
    patch(path, 0, place, "<I", 300 << 20)
    with pytest.raises(SourceError, match=r"a/1\.jpg claims to have more than 256 MB"):
        opened(path)


def test_a_huge_list_of_labels_is_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path / "x.zip", [])
    patch(path, 3, SIZE, "<I", 600 << 20)
    with pytest.raises(SourceError, match=r"dataset\.json claims to have more than 512 MB"):
        opened(path)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a/1.jpg": bytes(50 << 20)}, zipfile.ZIP_DEFLATED)
    patch(path, 0, SIZE, "<I", 1000)
    source = opened(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match="do not have the 1000 bytes"):
        source.read(0)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 26, 28])
def test_a_member_of_another_size_than_it_claims_is_an_error(size: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES, zipfile.ZIP_DEFLATED)
    patch(path, 0, SIZE, "<I", size)
    with pytest.raises(ValueError, match="do not have"):
        opened(path).read(0)


def _same_header(path: Path) -> None:
    patch(path, 1, OFFSET, "<I", 0)


def _data_of_the_next(path: Path) -> None:
    patch(path, 0, PACKED, "<I", 100)


def _outside(path: Path) -> None:
    patch(path, 2, OFFSET, "<I", 100_000)


@pytest.mark.parametrize("plant", [_same_header, _data_of_the_next, _outside])
def test_overlapping_members_are_refused(plant: Callable[[Path], None], tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES)
    plant(path)
    with pytest.raises(SourceError, match="overlap"):
        opened(path)


def test_a_header_that_reaches_into_the_next_member_is_an_error_of_the_image(
    tmp_path: Path,
) -> None:
    path = write_zip(tmp_path / "x.zip", IMAGES)
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, 28, 64)
    path.write_bytes(content)
    source = opened(path)
    with pytest.raises(ValueError, match="no intact member at byte 0"):
        source.read(0)
    assert source.read(1) == IMAGES["a/2.jpg"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_never_taken_for_an_image(method: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a/1.jpg": IMAGE}, method)
    whole = path.read_bytes()
    for at in range(37, whole.index(ENTRY)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        # Deflated data have bits that do not matter.
        with suppress(ValueError):
            assert opened(path).read(0) == IMAGE


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are null"),
        ([["a/1.jpg", 0], ["a/2.jpg", 0]], r"no label for 'b/1\.jpg'"),
        ([*([name, 0] for name in IMAGES), ["c.jpg", 1]], r"no such image for 'c\.jpg'"),
        ([["a/1.jpg", 0], ["a/1.jpg", 1]], "two labels"),
        ([["a/1.jpg", 0.5]], "expected .name, label."),
        ([["a/1.jpg", True]], "expected .name, label."),
        ([["a/1.jpg", [0, 1]]], "expected .name, label."),
        ([[5, 1]], "expected .name, label."),
        ("labels", "expected .name, label."),
        ([[name, -1] for name in IMAGES], "label -1"),
        ([[name, 10**9] for name in IMAGES], "more than 100000 classes"),
    ],
)
def test_a_listing_that_does_not_label_every_image_is_refused(
    labels: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        opened(labelled(tmp_path / "x.zip", labels))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"labels"'])
def test_a_listing_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dataset\.json: no \{"):
        opened(write_zip(tmp_path / "x.zip", {**IMAGES, "dataset.json": content}))


def test_labels_keep_their_numbers_where_some_have_no_image(tmp_path: Path) -> None:
    source = opened(labelled(tmp_path / "x.zip", [[name, 3 * i] for i, name in enumerate(IMAGES)]))
    assert source.labels.tolist() == [0, 3, 6]
    assert source.classes == tuple("0123456")


def test_garbage_is_collected_again_after_a_listing(tmp_path: Path) -> None:
    opened(write_zip(tmp_path / "x.zip", IMAGES))
    with pytest.raises(SourceError):
        opened(tmp_path)
    assert gc.isenabled()


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {**IMAGES, "meta/synsets.txt": b""})
    with pytest.raises(SourceError, match="meta has no images"):
        opened(path)
    path = write_zip(tmp_path / "x.zip", {**IMAGES, "c/": b""})
    with pytest.raises(SourceError, match="c has no images"):
        opened(path)


def test_a_folder_around_the_classes_is_asked_for(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {f"train/{name}": b"" for name in IMAGES})
    with pytest.raises(SourceError, match=r'set path = ".*x\.zip/train"'):
        opened(path)
    assert opened(path / "train").keys == tuple(IMAGES)
    with pytest.raises(SourceError, match="no images"):
        opened(path / "val")
