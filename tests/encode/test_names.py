"""Which names in a data set are images and classes: one rule for folders, zips and tars."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import packing
import pytest

from stages.encode.images.sources import Source, SourceError
from stages.encode.images.sources.folders import images_below

CLASSES = {f"n0{label}/{number}.jpg": b"image" for label in (1, 2, 3) for number in range(2)}
Opened = Callable[[Iterable[str]], Source]


def _folder(files: Mapping[str, bytes], place: Path) -> Path:
    packing.write_files(place / "data", files)
    return place / "data"


@pytest.fixture(params=["imagefolder", "zip", "tar"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens a data set of three classes, and of files or (with a slash behind) folders beside."""
    writers = {
        "imagefolder": _folder,
        "zip": lambda files, place: packing.write_zip(place / "x.zip", files),
        "tar": lambda files, place: packing.write_tar(place / "x.tar", files),
    }

    def open_with(names: Iterable[str], files: Mapping[str, bytes] = CLASSES) -> Source:
        added = {name: b"other" for name in names if not name.endswith("/")}
        path = writers[request.param]({**files, **added}, tmp_path)
        if path.is_dir():
            for name in names:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                if name.endswith("/"):
                    (path / name).mkdir(exist_ok=True)
        return packing.opened(request.param, path)

    return open_with


def test_hidden_names_and_those_of_systems_are_passed_over_and_counted(opened: Opened) -> None:
    source = opened(
        (
            ".DS_Store",
            ".ipynb_checkpoints/1.jpg",
            "n01/._0.jpg",
            "n01/.jpg",
            "n02/.thumbs/deep/1.jpg",
            "n02/__MACOSX/1.jpg",
            "$RECYCLE.BIN/S-1/1.jpg",
            "lost+found/1.jpg",
        )
    )
    assert tuple(source.keys) == tuple(CLASSES)
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.classes == ("n01", "n02", "n03")
    assert dict(source.left_out.counts) == {"hidden": 5, "of the operating system": 3}
    assert str(source.left_out).startswith("5 hidden (")
    assert ", ...); 3 of the operating system (" in str(source.left_out)


def test_names_that_only_resemble_these_are_classes_and_images(opened: Opened) -> None:
    source = opened(("__MACOSX2/1.jpg", "n01/_.jpg", "n01/a.__MACOSX/1.jpg", "n04.zarr/1.jpg"))
    assert len(source.keys) == 10
    assert source.classes == ("__MACOSX2", "n01", "n02", "n03", "n04.zarr")
    assert source.left_out.total == 0


def test_caches_and_runs_among_the_classes_are_passed_over(opened: Opened) -> None:
    source = opened(
        (
            "imagenet.zarr/zarr.json",
            "imagenet.zarr/rows/zarr.json",
            "imagenet.zarr/picture.png",
            "old/.zgroup",
            "n02/own.zarr/zarr.json",
            "n02/own.zarr/grid.png",
            "runs/first/log.jsonl",
            "runs/first/grids/step-1.png",
            "runs/second/log.jsonl",
            "runs/notes.txt",
        )
    )
    assert tuple(source.keys) == tuple(CLASSES)
    assert source.classes == ("n01", "n02", "n03")
    assert source.left_out.folders("of a cache or run") == {
        "imagenet.zarr/",
        "old/",
        "n02/own.zarr/",
        "runs/first/",
        "runs/second/",
    }
    assert source.left_out.counts["without an image's suffix"] == 1


def test_images_outside_of_class_folders_and_other_files_are_counted(opened: Opened) -> None:
    source = opened(("loose.jpg", "n01/a.gif", "n01/b.jpeg2", "README", "n03/deep/c.txt"))
    assert tuple(source.keys) == tuple(CLASSES)
    counts = source.left_out.counts
    assert counts == {"in no class folder": 1, "without an image's suffix": 4}


def test_a_class_without_images_is_refused_with_what_depends_on_it(opened: Opened) -> None:
    with pytest.raises(SourceError, match=r"n015 has no images.*labels of all classes behind it"):
        opened(("n015/notes.txt",))


def test_a_class_with_only_what_is_passed_over_has_no_images(opened: Opened) -> None:
    with pytest.raises(SourceError, match=r"n015 has no images"):
        opened(("n015/._1.jpg", "n015/x.txt"))


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        (("train/n01/1.jpg", "val/n01/1.jpg"), ("train", "val")),
        (("train/n01/1.jpg", "val/1.jpg", "test/1.jpg"), ("train",)),
        (("train/n01/1.jpg", "val/1.jpg", "sample/1.jpg"), ("train",)),
        (("train/1.jpg", "test/1.jpg"), ("test", "train")),
        (("ILSVRC2012_train/n01/1.jpg", "ILSVRC2012_val/n01/1.jpg"), ("ILSVRC2012_",)),
        (("Training/a/1.jpg", "Validation/a/1.jpg"), ("Training", "Validation")),
    ],
)
def test_splits_are_no_classes_and_the_choice_is_named(
    names: tuple[str, ...], choices: tuple[str, ...], opened: Opened
) -> None:
    with pytest.raises(SourceError, match=r"look like the splits .*Choose one: path = ") as error:
        opened(names, {})
    chosen = str(error.value).partition("Choose one")[2]
    assert all(f"/{name}" in chosen for name in choices)


def test_classes_may_be_called_as_splits_are_and_have_folders(opened: Opened) -> None:
    names = [f"{name}/images/1.jpg" for name in ("bus", "test", "valley", "trainer")]
    assert opened(names, {}).classes == ("bus", "test", "trainer", "valley")


def test_classes_of_the_vehicle_and_the_trial_are_classes_beside_others(opened: Opened) -> None:
    source = opened(("bus/1.jpg", "test/1.jpg", "train/1.jpg"), {})
    assert source.classes == ("bus", "test", "train")


def test_folders_around_the_classes_are_asked_for_at_once(opened: Opened) -> None:
    names = [f"ILSVRC/Data/train/n0{label}/1.jpg" for label in (1, 2)]
    with pytest.raises(SourceError, match=r'set path = ".*/ILSVRC/Data/train"'):
        opened(names, {})


def _undecodable(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)  # noqa: PTH118 - bytes
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"image")


@pytest.mark.parametrize("name", [b"n01/\xff.jpg", b"n\xe9/1.jpg"])
def test_a_name_that_is_no_text_is_refused(name: bytes, tmp_path: Path) -> None:
    folder = _folder(CLASSES, tmp_path)
    _undecodable(folder, name)
    with pytest.raises(SourceError, match=r"data.*'.*\\x(ff|e9).*' is refused: it is not UTF-8"):
        packing.opened("imagefolder", folder)


def test_a_name_that_is_no_text_does_not_matter_where_no_image_has_it(tmp_path: Path) -> None:
    folder = _folder(CLASSES, tmp_path)
    for name in (b"n01/.\xff.jpg", b"n01/\xff.txt", b"\xff"):
        _undecodable(folder, name)
    source = packing.opened("imagefolder", folder)
    assert tuple(source.keys) == tuple(CLASSES)
    assert source.left_out.total == 3
    assert r"n01/\xff.txt" in str(source.left_out).encode("ascii").decode()


def test_links_that_lead_back_do_not_multiply_images(tmp_path: Path) -> None:
    folder = _folder(CLASSES, tmp_path)
    (folder / "n01" / "self").symlink_to(".")
    (folder / "n01" / "up").symlink_to("..")
    (folder / "n02" / "there").symlink_to("../n03")
    (folder / "n03" / "back").symlink_to("../n02")
    (folder / "n03" / "round").symlink_to("round")
    (folder / "n03" / "image.jpg").symlink_to("image.jpg")
    source = packing.opened("imagefolder", folder)
    below_n02 = ("n02/there/0.jpg", "n02/there/1.jpg", "n02/there/image.jpg")
    below_n03 = ("n03/image.jpg", "n03/back/0.jpg", "n03/back/1.jpg")
    assert sorted(source.keys) == sorted((*CLASSES, *below_n02, *below_n03))
    assert source.left_out.folders("linked back to a folder around it") == {
        "n01/self/",
        "n01/up/",
        "n02/there/back/",
        "n03/back/there/",
    }
    assert source.left_out.counts["linked to nowhere"] == 2


def test_links_to_classes_elsewhere_are_followed(tmp_path: Path) -> None:
    folder = _folder(CLASSES, tmp_path)
    (folder / "n03").rename(tmp_path / "elsewhere")
    (folder / "n03").symlink_to(tmp_path / "elsewhere")
    (folder / "n04").symlink_to("n01")
    source = packing.opened("imagefolder", folder)
    assert tuple(source.keys) == (*CLASSES, "n04/0.jpg", "n04/1.jpg")
    assert source.left_out.total == 0


def test_a_link_to_a_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = _folder(CLASSES, tmp_path)
    (folder / "n02b").symlink_to(tmp_path / "unmounted")
    with pytest.raises(SourceError, match=r"data/n02b is a link that leads nowhere.*labels"):
        packing.opened("imagefolder", folder)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scandir = _folder(CLASSES, tmp_path), os.scandir

    def denying(path: bytes) -> object:
        if path.endswith(b"n02"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denying)
    with pytest.raises(SourceError, match=r"n02 cannot be listed: Permission denied"):
        packing.opened("imagefolder", folder)


def test_images_below_any_folder_go_by_the_same_rule(tmp_path: Path) -> None:
    names = ("1.png", "._1.png", "deep/2.jpg", ".trash/3.jpg", "cache/zarr.json", "cache/4.jpg")
    packing.write_files(tmp_path, dict.fromkeys(names, b""))
    (tmp_path / "deep" / "up").symlink_to("..")
    assert images_below(tmp_path) == ["1.png", "deep/2.jpg"]


@pytest.mark.parametrize("source", ["imagefolder", "tar"])
def test_names_are_the_same_whatever_the_locale(source: str, tmp_path: Path) -> None:
    files = {"ä/é.jpg": "ä/é.jpg".encode(), "b/ü.jpg": "b/ü.jpg".encode()}
    path = _folder(files, tmp_path)
    if source == "tar":
        path = packing.write_tar(tmp_path / "x.tar", files, packing.tarfile.GNU_FORMAT)
    script = (
        "import sys; from pathlib import Path\n"
        "from stages.encode.images.sources import open_dataset\n"
        "from stages.encode.images.sources.source import FileSettings\n"
        "assert sys.getfilesystemencoding() != 'utf-8'\n"
        f"dataset = FileSettings(source={source!r}, path=Path({str(path)!r}))\n"
        "source = open_dataset(dataset)\n"
        "assert [source.read(i).decode() for i in range(2)] == list(source.keys)\n"
        "assert all(source.stamp(i) for i in range(2))\n"
        "print(ascii(tuple(source.keys)))\n"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=plain, check=True, capture_output=True, text=True
    )
    assert ran.stdout.strip() == ascii(("b/ü.jpg", "ä/é.jpg"))
