import bz2
import gzip
import lzma
import tarfile
from pathlib import Path

import packing
import pytest
from packing import tar_bytes, write_files, write_tar

from stages.encode.images.sources import Source, SourceError

IMAGES = {"a/1.jpg": b"one" * 9, "a/2.jpg": b"two" * 900, "b/1.jpg": b"three" * 9}
SHARD = {"x.jpg": b"x", "x.cls": b"1", "y.png": b"y", "y.cls": b"0"}


def opened(path: Path) -> Source:
    return packing.opened("tar", path)


def contents(source: Source) -> dict[str, bytes]:
    return {key: source.read(index) for index, key in enumerate(source.keys)}


def member(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def with_members(path: Path, *members: tarfile.TarInfo) -> Path:
    """The images, and members without data."""
    write_tar(path, IMAGES)
    with tarfile.open(path, "a") as archive:
        for info in members:
            archive.addfile(info)
    return path


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_from_every_kind_of_tar(kind: int, tmp_path: Path) -> None:
    names = ["a/ñandú.jpg", f"b/{'l' * 90}/{'m' * 80}.jpg"]
    if kind != tarfile.USTAR_FORMAT:
        names.append(f"c/{'n' * 200}/{'o' * 200}.jpg")
    files = {name: name.encode() * 500 for name in names}
    assert contents(opened(write_tar(tmp_path / "x.tar", files, kind))) == files
    inner = tar_bytes(files, kind)
    path = write_tar(tmp_path / "y.tar", {"d.tar": inner, "e.tar": inner}, kind)
    found = contents(opened(path))
    assert found == {f"{tar}/{name}": files[name] for tar in "de" for name in names}


def test_a_folder_packed_by_tar_itself_is_read(tmp_path: Path) -> None:
    write_files(tmp_path / "tree", IMAGES)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "tree", ".")
    assert contents(opened(tmp_path / "x.tar")) == IMAGES


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_refused_with_what_to_do(compress: object, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(compress(tar_bytes(IMAGES)))
    for asked in (path, tmp_path):
        with pytest.raises(SourceError, match=r"x\.tar is compressed.*gunzip"):
            opened(asked)
    path.rename(tmp_path / "x.tar.gz")
    with pytest.raises(SourceError, match=r"no \.tar files at .*compressed ones are not read"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "name", ["/a/x.jpg", "C:/x.jpg", "a\\x.jpg", "../x.jpg", "a/../../x.jpg", "a/x\udcff.jpg"]
)
def test_a_name_that_leads_out_or_is_no_text_is_refused(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {**IMAGES, name: b""}, tarfile.GNU_FORMAT)
    with pytest.raises(SourceError, match="is refused"):
        opened(path)
    path = write_tar(tmp_path / "y.tar", {"c.tar": path.read_bytes()})
    with pytest.raises(SourceError, match=r"y\.tar/c\.tar.* is refused"):
        opened(path)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_an_image_that_is_no_plain_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    odd = member("a/3.jpg", kind, linkname="1.jpg")
    with pytest.raises(SourceError, match=r"a/3\.jpg is a link, sparse or a device"):
        opened(with_members(tmp_path / "x.tar", odd))


def test_other_links_and_devices_are_left_alone(tmp_path: Path) -> None:
    odd = member("a/latest", tarfile.SYMTYPE, linkname="/etc/passwd")
    device = member("a/null", tarfile.CHRTYPE)
    assert contents(opened(with_members(tmp_path / "x.tar", odd, device))) == IMAGES


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"two of 'a/1\.jpg'"):
        opened(with_members(tmp_path / "x.tar", tarfile.TarInfo("a//./1.jpg")))


def test_tars_in_tars_in_tars_are_not_followed(tmp_path: Path) -> None:
    deep = tar_bytes({"1.jpg": b"deep"})
    path = write_tar(tmp_path / "x.tar", {"a.tar": tar_bytes({"1.jpg": b"", "b.tar": deep})})
    assert opened(path).keys == ("a/1.jpg",)
    path = write_tar(tmp_path / "x.tar", {"a.tar": tar_bytes({"b.tar": deep})})
    with pytest.raises(SourceError, match="no images"):
        opened(path)


def test_a_tar_per_class_has_to_be_told_from_the_others(tmp_path: Path) -> None:
    one = tar_bytes({"1.jpg": b""})
    with pytest.raises(SourceError, match="two of 'a'"):
        opened(write_tar(tmp_path / "x.tar", {"a.tar": one, "b/a.tar": one}))
    with pytest.raises(SourceError, match="both tars and images"):
        opened(write_tar(tmp_path / "x.tar", {"a.tar": one, **IMAGES}))
    with pytest.raises(SourceError, match="b has no images"):
        opened(write_tar(tmp_path / "x.tar", {"a.tar": one, "b.tar": tar_bytes({})}))


def test_what_macos_puts_beside_tars_in_a_tar_is_passed_over(tmp_path: Path) -> None:
    files = {"._a.tar": b"resources", "a.tar": tar_bytes({"1.jpg": b"", "._1.jpg": b""})}
    source = opened(write_tar(tmp_path / "x.tar", {**files, "notes.txt": b""}))
    assert source.keys == ("a/1.jpg",)
    assert source.left_out.first["hidden"] == ["._a.tar", "a/._1.jpg"]
    assert source.left_out.total == 3


def test_every_damaged_header_is_noticed(tmp_path: Path) -> None:
    inner = tar_bytes({"1.jpg": b"x", "2.jpg": b""})
    for whole in (tar_bytes(IMAGES), tar_bytes({"a.tar": inner})):
        blocks = range(0, len(whole), 512)
        headers = [at for at in blocks if whole[at + 257 : at + 262] == b"ustar"]
        assert len(headers) == 3
        for at in headers:
            (tmp_path / "x.tar").write_bytes(whole[: at + 148] + b"7" * 8 + whole[at + 156 :])
            with pytest.raises(SourceError, match=r"x\.tar"):
                opened(tmp_path / "x.tar")


def test_a_tar_without_an_end_is_refused(tmp_path: Path) -> None:
    whole = tar_bytes(IMAGES).rstrip(b"\0")
    (tmp_path / "x.tar").write_bytes(whole + bytes(-len(whole) % 512))
    with pytest.raises(SourceError, match=r"x\.tar is cut off"):
        opened(tmp_path / "x.tar")


def test_a_member_that_reaches_out_of_its_tar_is_refused(tmp_path: Path) -> None:
    inner = tar_bytes({"1.jpg": b""})
    header = member("1.jpg", tarfile.REGTYPE, size=4096).tobuf(tarfile.GNU_FORMAT)
    files = {"a.tar": header + inner[512:2048], "b.tar": inner}
    with pytest.raises(SourceError, match=r"a\.tar .*damaged"):
        opened(write_tar(tmp_path / "x.tar", files))


@pytest.mark.parametrize("size", [300 << 20, 1 << 40])
def test_a_member_that_claims_to_be_huge_is_refused(size: int, tmp_path: Path) -> None:
    header = member("a/1.jpg", tarfile.REGTYPE, size=size).tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(header)
        # A hole, which takes no space.
        file.truncate(1 << 30)
    with pytest.raises(SourceError, match=r"more than 256 MB"):
        opened(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_to_be_huge_is_not_read(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(member("x", kind, size=1 << 39).tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match=r"a header of 5\d+ bytes"):
        opened(path)


@pytest.mark.parametrize("name", ["a/1.jpg", "x"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_negative_sizes_are_refused(kind: bytes, name: str, tmp_path: Path) -> None:
    info = member(name, kind, size=-1024)
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes(IMAGES)[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(SourceError, match=r"x\.tar"):
        opened(path)


def test_a_sample_is_named_by_all_before_the_first_dot(tmp_path: Path) -> None:
    files = {
        "d.ir/x.seg.png": b"mask",
        "d.ir/x.CLS": b" 12\n",
        "d.ir/x.JPG": b"image",
        "d.ir/x.json": b"not read",
        "d.ir/y.webp": b"other",
        "d.ir/y.json": b'{"label": 3, "caption": "\\u00e9"}',
        "d.ir/z.cls": b"0",
        ".hidden.cls": b"0",
    }
    source = opened(write_tar(tmp_path / "x.tar", files))
    assert contents(source) == {"d.ir/x.JPG": b"image", "d.ir/y.webp": b"other"}
    assert source.labels.tolist() == [12, 3]
    assert len(source.classes) == 13


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"z.jpg": b""}, "1 images have no label: z has"),
        ({"x.png": b""}, "two images for x"),
        ({"z.jpg": b"", "z.cls": b"cat"}, r"z\.cls has no label .*'cat'"),
        ({"z.jpg": b"", "z.cls": b""}, r"z\.cls has no label"),
        ({"z.jpg": b"", "z.cls": b"1" * 30}, r"z\.cls has no label"),
        ({"z.jpg": b"", "z.cls": b"-1"}, "label -1"),
        ({"z.jpg": b"", "z.cls": b"999999999"}, "more than 100000 classes"),
        ({"z.jpg": b"", "z.json": b'{"label": "3"}'}, r"z\.json has no label"),
        ({"z.jpg": b"", "z.json": b'{"label": true}'}, r"z\.json has no label"),
        ({"z.jpg": b"", "z.json": b"[3]"}, r"z\.json has no label"),
        ({"z.jpg": b"", "z.json": b"[" * 90_000}, r"z\.json has no label"),
        ({"z.jpg": b"", "z.cls": bytes(2 << 20)}, r"z\.cls is no label"),
    ],
)
def test_samples_without_a_clear_label_are_refused(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        opened(write_tar(tmp_path / "x.tar", {**SHARD, **files}))


def test_shards_may_share_names(tmp_path: Path) -> None:
    for shard in ("1", "0"):
        write_tar(tmp_path / f"{shard}.tar", {**SHARD, "x.jpg": shard.encode()})
    write_tar(tmp_path / "._0.tar", {})
    source = opened(tmp_path)
    assert source.keys == ("0.tar/x.jpg", "0.tar/y.png", "1.tar/x.jpg", "1.tar/y.png")
    assert [source.read(0), source.read(2)] == [b"0", b"1"]


def test_a_shard_that_is_lost_is_not_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", SHARD)
    (tmp_path / "1.tar").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"1\.tar cannot be opened"):
        opened(tmp_path)


def test_more_shards_than_files_that_may_be_open_are_read(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    for shard in range(60):
        write_tar(tmp_path / f"{shard:03d}.tar", SHARD)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "000.tar").open() as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno() + 30, limits[1]))
    try:
        assert len(contents(opened(tmp_path))) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
