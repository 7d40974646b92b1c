import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import numpy as np
import packing
import pytest
from pydantic import TypeAdapter, ValidationError
from tiny import write_images

from stages.encode.images.crop import decode
from stages.encode.images.sources import SOURCES, Source, SourceError, open_dataset
from stages.encode.images.sources.source import FileSettings, SourceKind
from stages.setting_types import Kinds

ARCHIVES = ("zip", "tar", "parquet", "arrow")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, packing.Packed]:
    """Every source in each of its forms; not to be written to."""
    folder = tmp_path_factory.mktemp("packed")
    write_images(folder / "images")
    return {name: _packed(name, folder / "images", folder / name) for name in packing.PACKERS}


def _packed(name: str, images: Path, folder: Path) -> packing.Packed:
    folder.mkdir()
    return packing.PACKERS[name](images, folder)


@pytest.fixture(params=sorted(packing.PACKERS))
def one(packed: Mapping[str, packing.Packed], request: pytest.FixtureRequest) -> packing.Packed:
    return packed[request.param]


def test_every_source_is_tested(packed: Mapping[str, packing.Packed]) -> None:
    assert {each.source for each in packed.values()} == set(SOURCES)


def test_every_source_lists_unique_keys_in_its_order(one: packing.Packed) -> None:
    source = one.open()
    assert list(source.keys) == list(one.images)
    assert len(set(source.keys)) == len(source.keys)


def test_every_source_gives_each_image_its_class(one: packing.Packed) -> None:
    source = one.open()
    assert source.labels.dtype == np.int32
    assert [source.classes[label] for label in source.labels] == list(one.classes.values())
    assert set(source.labels.tolist()) == set(range(len(source.classes)))


def test_every_source_gives_the_bytes_of_the_files(one: packing.Packed) -> None:
    source = one.open()
    assert [source.read(index) for index in range(len(source.keys))] == list(one.images.values())
    if source.has_images:
        assert decode(source.read(0)).mode == "RGB"


def test_every_source_is_the_same_when_opened_again(one: packing.Packed) -> None:
    first, again = one.open(), one.open()
    assert (first.keys, first.classes, first.block_rows) == (
        again.keys,
        again.classes,
        again.block_rows,
    )
    assert first.labels.tolist() == again.labels.tolist()
    assert [first.stamp(i) for i in range(9)] == [again.stamp(i) for i in range(9)]


def test_every_source_can_be_sent_to_another_process(one: packing.Packed) -> None:
    source, sent = one.open(), cloudpickle.loads(cloudpickle.dumps(one.open()))
    assert (sent.keys, sent.classes, sent.block_rows) == (
        source.keys,
        source.classes,
        source.block_rows,
    )
    assert [sent.read(index) for index in range(len(sent.keys))] == list(one.images.values())


def test_every_source_is_read_by_many_threads(one: packing.Packed) -> None:
    source = one.open()
    order = np.random.default_rng(0).integers(0, len(source.keys), 400).tolist()
    expected = list(one.images.values())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order)) == [expected[index] for index in order]


@pytest.mark.parametrize("name", sorted(packing.TREES))
def test_every_file_of_a_data_set_is_an_image_of_it_or_named_as_left_out(
    name: str, images: Path, tmp_path: Path
) -> None:
    packed = _packed(name, images, tmp_path / "data")
    before = packed.open()
    assert before.left_out.total == 0
    packing.TREES[name](packed, packing.JUNK)
    after = packed.open()
    assert (after.keys, after.classes) == (before.keys, before.classes)
    assert after.labels.tolist() == before.labels.tolist()
    assert [after.read(i) for i in range(len(after.keys))] == list(packed.images.values())
    named = [name for names in after.left_out.first.values() for name in names]
    assert after.left_out.total == len(named) == len(set(named))
    assert {name.removeprefix("train-000000.tar/") for name in named} == set(packing.JUNK.values())


def test_every_source_with_files_of_its_own_is_tested_for_what_it_leaves_out(
    packed: Mapping[str, packing.Packed],
) -> None:
    assert {packed[name].source for name in packing.TREES} == {
        "imagefolder",
        "zip",
        "tar",
        "repa",
        "u-vit",
    }
    rest = {name: each for name, each in packed.items() if name not in packing.TREES}
    # A row of a table is an image, whatever it is called, and an HDF5 file has a list.
    assert {each.source for each in rest.values()} == {
        *("arrow", "lightningdit", "parquet", "repa", "sample-photos")
    }
    for each in rest.values():
        assert len(each.open().keys) == len(each.images)
        assert each.open().left_out.total == 0


# Newer Pythons warn of any fork beside threads.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_source_is_read_after_a_fork(one: packing.Packed, tmp_path: Path) -> None:
    source = one.open()
    source.read(0)

    def child() -> None:
        found = [packing.digest(source.read(index)) for index in range(len(source.keys))]
        (tmp_path / "same").write_text(str(found == one.digests()))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert (tmp_path / "same").read_text() == "True"


def test_every_source_is_read_by_a_process_of_its_own(packed: Mapping[str, packing.Packed]) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = {
            name: pool.submit(packing.read_digests, each.source, each.path)
            for name, each in packed.items()
        }
        assert {name: future.result() for name, future in found.items()} == {
            name: each.digests() for name, each in packed.items()
        }


@pytest.mark.parametrize("name", sorted(set(packing.PACKERS) - {"sample_photos"}))
def test_a_stamp_changes_when_its_image_does(name: str, images: Path, tmp_path: Path) -> None:
    before = _packed(name, images, tmp_path / "data").open()
    stamps = dict(zip(before.keys, map(before.stamp, range(len(before.keys))), strict=True))
    assert 0 not in stamps.values()
    shutil.rmtree(tmp_path / "data")
    for file in images.rglob("*.jpg"):
        # The same size, and another time of change.
        file.write_bytes(file.read_bytes()[::-1])
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    after = _packed(name, images, tmp_path / "data")
    for file in (tmp_path / "data").rglob("*"):
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    source = after.open()
    assert all(source.stamp(i) != stamps[key] for i, key in enumerate(source.keys))


def test_images_have_stamps_of_their_own(one: packing.Packed) -> None:
    source = one.open()
    if one.source in ARCHIVES:
        assert len({source.stamp(index) for index in range(len(source.keys))}) == len(source.keys)


class CountedSettings(FileSettings):
    count: int = 1


def counted(dataset: CountedSettings) -> Source:
    keys = tuple(map(str, range(dataset.count)))
    return Source(keys, np.zeros(dataset.count, np.int32), ("one",), lambda index: b"%d" % index)


def test_a_source_with_an_option_of_its_own_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "counted", SourceKind(counted, CountedSettings))
    kinds = Kinds("source", {name: kind.settings for name, kind in SOURCES.items()})
    section = TypeAdapter(kinds.union)
    found = open_dataset(section.validate_python({"source": "counted", "count": 3}))
    assert [found.read(index) for index in range(len(found.keys))] == [b"0", b"1", b"2"]
    with pytest.raises(ValidationError, match="count"):
        section.validate_python({"source": "zip", "count": 3})


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"sample-photos"}))
def test_a_path_that_is_not_there_is_refused(source: str, tmp_path: Path) -> None:
    for path in (None, tmp_path / "nothing"):
        with pytest.raises(SourceError, match=r"dataset\.path: no f"):
            packing.opened(source, path)


@pytest.mark.parametrize("source", ARCHIVES)
def test_a_file_that_is_something_else_is_refused_by_name(source: str, tmp_path: Path) -> None:
    for content in (b"", b"nothing of the kind" * 100, bytes(5000)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(SourceError, match=r"x.* no "):
            packing.opened(source, tmp_path / "x")


@pytest.mark.parametrize(
    "name", [name for name in packing.PACKERS if name.split("_")[0] in ARCHIVES]
)
def test_an_archive_that_was_cut_off_is_refused_by_name(
    name: str, images: Path, tmp_path: Path
) -> None:
    packed = _packed(name, images, tmp_path / "data")
    largest = max((tmp_path / "data").iterdir(), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    for size in (len(content) - len(content) // 3, 1000, 3):
        largest.write_bytes(content[:size])
        with pytest.raises(SourceError, match=largest.name):
            packed.open()


@pytest.mark.parametrize(
    "name", [name for name in packing.PACKERS if name.split("_")[0] in ARCHIVES]
)
def test_an_archive_that_changes_while_it_is_read_is_an_error_of_the_whole(
    name: str, images: Path, tmp_path: Path
) -> None:
    source = _packed(name, images, tmp_path / "data").open()
    for file in (tmp_path / "data").iterdir():
        file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(SourceError, match="changed while it was in use"):
        source.read(0)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(SourceError, match="cannot be opened"):
        source.read(0)


def test_files_of_several_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "validation-0"):
        (tmp_path / f"{name}.tar").touch()
    with pytest.raises(SourceError, match=r"train, val.*\*train\*\.tar"):
        packing.opened("tar", tmp_path)
    with pytest.raises(SourceError, match="train, val"):
        packing.opened("tar", tmp_path / "*.tar")


# Names whose order is not the obvious one.
ODD_NAMES = (
    "b/2.jpg",
    "b/10.jpg",
    "b/deep/1.JPEG",
    "b/deep-er/1.png",
    "b/deep/er/1.webp",
    "B/x.tiff",
    "a b/é.Png",
    "a-b/z.jpg.bmp",
    "a/notes.txt",
    "a/z.ppm",
    "ä/jpg.jpg",
    "root.jpg",
)


def _as_folder(files: Mapping[str, bytes], folder: Path) -> Path:
    packing.write_files(folder / "tree", files)
    return folder / "tree"


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("imagefolder", _as_folder),
        ("zip", lambda files, folder: packing.write_zip(folder / "x.zip", files)),
        ("tar", lambda files, folder: packing.write_tar(folder / "x.tar", files)),
    ],
)
def test_class_folders_are_listed_as_torchvision_lists_the_unpacked_tree(
    source: str, write: Callable[[Mapping[str, bytes], Path], Path], tmp_path: Path
) -> None:
    import stages.vision  # noqa: F401, I001 - torchvision imports only after it
    from torchvision.datasets import ImageFolder

    files = {name: name.encode() for name in ODD_NAMES}
    unpacked = _as_folder(files, tmp_path / "unpacked")
    theirs = ImageFolder(str(unpacked))
    ours = packing.opened(source, write(files, tmp_path))
    assert [str(unpacked / key) for key in ours.keys] == [path for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes
    assert [ours.read(index).decode() for index in range(len(ours.keys))] == list(ours.keys)


def test_the_sample_photos_are_at_least_a_thousand_crops_of_64_px() -> None:
    source = packing.opened("sample-photos", None, 64)
    assert len(source.keys) >= 1000
    assert decode(source.read(700)).size == (64, 64)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no images in class folders"):
        packing.opened("imagefolder", tmp_path)
