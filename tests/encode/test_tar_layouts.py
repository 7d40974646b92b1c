"""How people keep data sets in tars: what tells the classes, and what keys are."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import packing
import pytest
from packing import tar_bytes, write_tar

from stages.encode.images.sources import Source, SourceError

SHARD = {"x.jpg": b"x", "x.cls": b"1", "y.png": b"y", "y.cls": b"0"}
SYNSETS = {
    "n01440764": {"n01440764_18.JPEG": b"tench 18", "n01440764_2.JPEG": b"tench 2"},
    "n01443537": {"n01443537_7.JPEG": b"goldfish"},
}
TREE = {f"{tar}/{name}": image for tar, files in SYNSETS.items() for name, image in files.items()}
PUBLISHED = {
    "n01443537_7_n01443537.JPEG": b"goldfish",
    "n01440764_18_n01440764.JPEG": b"tench 18",
    "n01440764_2_n01440764.JPEG": b"tench 2",
}


def opened(path: Path) -> Source:
    return packing.opened("tar", path)


def contents(source: Source) -> dict[str, bytes]:
    return {key: source.read(index) for index, key in enumerate(source.keys)}


def write_tars(folder: Path, tars: Mapping[str, Mapping[str, bytes]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, files in tars.items():
        write_tar(folder / f"{name}.tar", files)
    return folder


def test_a_folder_of_class_tars_is_the_tar_of_them_unpacked(tmp_path: Path) -> None:
    inner = {f"{name}.tar": tar_bytes(files) for name, files in SYNSETS.items()}
    whole = opened(write_tar(tmp_path / "x.tar", inner))
    unpacked = opened(write_tars(tmp_path / "unpacked", SYNSETS))
    assert contents(unpacked) == contents(whole) == TREE
    assert unpacked.labels.tolist() == whole.labels.tolist() == [0, 0, 1]
    assert unpacked.classes == whole.classes == tuple(SYNSETS)
    assert unpacked.left_out.total == 0


@pytest.mark.parametrize("inside", ["{tar}/", "images/", "./"])
def test_class_tars_may_have_a_folder_inside(inside: str, tmp_path: Path) -> None:
    tars = {
        tar: {f"{inside.format(tar=tar)}{name}": image for name, image in files.items()}
        for tar, files in SYNSETS.items()
    }
    source = opened(write_tars(tmp_path / "tars", tars))
    assert source.labels.tolist() == [0, 0, 1]
    assert source.classes == tuple(SYNSETS)


def test_classes_of_any_name_may_have_a_tar_each(tmp_path: Path) -> None:
    tars = {"tench": SYNSETS["n01440764"], "gold fish": SYNSETS["n01443537"]}
    source = opened(write_tars(tmp_path / "tars", tars))
    assert source.classes == ("gold fish", "tench")
    assert source.keys[0] == "gold fish/n01443537_7.JPEG"


def test_a_class_tar_without_images_is_refused(tmp_path: Path) -> None:
    tars = {**SYNSETS, "n01440000": {"notes.txt": b""}}
    with pytest.raises(SourceError, match="n01440000 has no images"):
        opened(write_tars(tmp_path / "tars", tars))


@pytest.mark.parametrize("names", [("000000", "000001"), ("train-0", "train-1"), ("shard",)])
def test_tars_that_are_numbered_or_alone_are_no_classes(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"images have no label: .*neither \.cls nor \.json"):
        opened(
            write_tars(tmp_path / "tars", {name: {"1.jpg": b"", "1.txt": b""} for name in names})
        )


def test_parts_of_one_tree_of_class_folders_are_read_as_one(tmp_path: Path) -> None:
    names = list(TREE)
    parts = {f"part{n}": {name: TREE[name] for name in names[n::2]} for n in range(2)}
    parts["part2"] = {"readme.txt": b""}
    several = opened(write_tars(tmp_path / "parts", parts))
    assert contents(several) == contents(opened(write_tar(tmp_path / "x.tar", TREE))) == TREE
    assert several.labels.tolist() == [0, 0, 1]
    assert several.left_out.first["without images"] == ["part2.tar"]
    write_tar(tmp_path / "parts" / "part3.tar", {names[0]: b"another"})
    with pytest.raises(SourceError, match=f"two of '{names[0]}'"):
        opened(tmp_path / "parts")


def test_a_folder_around_the_class_folders_in_tars_is_refused(tmp_path: Path) -> None:
    parts = {tar: {f"train/n0/{tar}.jpg": b""} for tar in ("one", "other")}
    with pytest.raises(SourceError, match=r"folders of 'train' inside the tars.*x\.tar/train"):
        opened(write_tars(tmp_path / "parts", parts))


def test_tars_of_hugging_face_tell_the_class_at_the_end_of_names(tmp_path: Path) -> None:
    parts = {
        "train_images_0": dict(list(PUBLISHED.items())[:2]),
        "train_images_1": dict(list(PUBLISHED.items())[2:]),
    }
    folder = write_tars(tmp_path / "data", parts)
    source = opened(folder)
    assert contents(source) == PUBLISHED
    assert [source.classes[label] for label in source.labels] == [
        key[-14:-5] for key in source.keys
    ]
    assert source.classes == ("n01440764", "n01443537")
    one = opened(write_tar(tmp_path / "train_images.tar", PUBLISHED))
    assert (one.keys, one.classes) == (source.keys, source.classes)
    write_tars(folder, {"val_images": {"ILSVRC2012_val_1_n01440764.JPEG": b"other"}})
    with pytest.raises(SourceError, match=r"several splits: train, val.*\*train\*\.tar"):
        opened(folder)
    assert opened(folder / "*train*.tar").keys == source.keys


def test_tars_that_are_there_in_compressed_form_only_are_asked_for(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data", {"train_images_0": PUBLISHED})
    for name in ("train_images_0.tar.gz", "val_images.tar.gz"):
        (folder / name).write_bytes(gzip.compress(b""))
    source = opened(folder)
    assert len(source.keys) == 3
    assert source.left_out.first["beside the tars"] == [
        "train_images_0.tar.gz",
        "val_images.tar.gz",
    ]
    (folder / "train_images_1.tar.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(SourceError, match=r"of train_images_1\.tar\.gz; compressed .*gunzip -k"):
        opened(folder)
    assert len(opened(folder / "train*.tar").keys) == 3


def test_flat_images_of_one_tar_have_no_class(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images in class folders: 2 lie in none"):
        opened(write_tar(tmp_path / "x.tar", SYNSETS["n01440764"]))


@pytest.mark.parametrize("empty", ["0", "1", "2"])
def test_a_shard_without_images_is_passed_over_and_named(empty: str, tmp_path: Path) -> None:
    write_tars(tmp_path, {shard: {} if shard == empty else SHARD for shard in "012"})
    source = opened(tmp_path)
    assert len(source.keys) == 4
    assert str(source.left_out) == f"1 without images ({empty}.tar)"
    with pytest.raises(SourceError, match="no images"):
        opened(write_tars(tmp_path / "none", {"0": {}, "1": {}}))


def test_keys_stay_when_a_folder_moves_and_when_shards_join_it(tmp_path: Path) -> None:
    folder = write_tars(tmp_path / "data", {"b": SHARD})
    alone = opened(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert opened(moved).keys == opened(moved / "b*.tar").keys == alone.keys
    write_tars(moved, {"a": SHARD, "c": SHARD})
    joined = opened(moved)
    assert set(alone.keys) < set(joined.keys)
    assert [key for key in joined.keys if key.startswith("b.tar")] == list(alone.keys)


def test_what_lies_beside_shards_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path, {"0": SHARD, ".hidden": SHARD})
    packing.write_files(tmp_path, {"README.md": b"", "loose.jpg": b"", "more/1.tar": b""})
    counts = opened(tmp_path).left_out.counts
    assert counts == {"hidden": 1, "beside the tars": 3}


def test_names_with_several_dots_are_not_left_over_without_a_word(tmp_path: Path) -> None:
    dotted = {f"a.00{n}.{kind}": b"1" for n in (1, 2) for kind in ("jpg", "cls")}
    files = {**dotted, "b.jpg": b"image", "b.cls": b"0"}
    for named in (files, dotted):
        path = write_tar(tmp_path / "x.tar", named)
        with pytest.raises(
            SourceError,
            match=r"2 images are those of no sample: a\.001\.jpg, a\.002\.jpg\..*Rename",
        ):
            opened(path)


def test_files_of_a_sample_that_are_not_its_image_are_counted(tmp_path: Path) -> None:
    files = {
        **SHARD,
        "x.seg.png": b"mask",
        "x.txt": b"caption",
        "x.json": b"{}",
        "y.input.jpg": b"other",
        "z.img": b"not known as an image",
        "z.cls": b"1",
        "w.JPEG": b"image",
        "w.CLS": b"1",
        "._w.jpg": b"resources",
    }
    source = opened(write_tar(tmp_path / "x.tar", files))
    assert source.keys == ("x.jpg", "y.png", "w.JPEG")
    assert source.left_out.first == {
        "hidden": ["._w.jpg"],
        "beside a sample's image": ["x.seg.png", "y.input.jpg"],
        "without an image's suffix": ["x.json", "z.img", "z.cls"],
    }
    labels, captions = 3, 1
    assert len(source.keys) + labels + captions + source.left_out.total == len(files)
