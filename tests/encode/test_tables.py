"""What parquet and Arrow files have in common: columns, labels, keys, splits and folders."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing import image_table, write_arrow

from pipeline.config import Config, ConfigError
from stages.encode.images.crop_sources import open_source
from stages.encode.images.sources import SOURCES, Source, SourceError
from stages.encode.images.sources.tables import TableSettings

IMAGES = [np.random.default_rng(number).bytes(300) for number in range(6)]
LABELS = [0, 1] * 3
KINDS = sorted(name for name, kind in SOURCES.items() if kind.settings is TableSettings)


def write(kind: str, path: Path, table: pa.Table) -> Path:
    """A table as `path`, which gets the suffix of its kind."""
    path = path.with_name(f"{path.name}.{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "arrow":
        return write_arrow(path, table)
    pq.write_table(table, path, write_page_checksum=True)
    return path


def opened(kind: str, path: Path, **choice: str) -> Source:
    return packing.opened(kind, path, **choice)


def contents(source: Source) -> list[bytes]:
    return [source.read(row) for row in range(len(source.keys))]


def structs(paths: Sequence[str | None], images: Sequence[bytes | None] = IMAGES) -> list[object]:
    return [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=False)]


def shard(*paths: str) -> pa.Table:
    """Rows of which each image is what its path says."""
    return image_table(structs(paths, [path.encode() for path in paths]), [0] * len(paths))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_without_pyarrow_the_command_to_get_it_is_named(kind: str) -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from stages.encode.images.sources import SourceError, open_dataset\n"
        "from stages.encode.images.sources.tables import TableSettings\n"
        f"try: open_dataset(TableSettings(source='{kind}'))\n"
        "except SourceError as error: sys.exit(str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stderr.strip().endswith(
        f"dataset.source: '{kind}' needs pyarrow, which is not installed: "
        "pip install 'repa-cache[parquet]'"
    )


@pytest.mark.parametrize(
    "image",
    [
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(300),
        pa.list_(pa.uint8()),
        pa.large_list(pa.uint8()),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_struct", [False, True])
def test_bytes_of_every_type_are_read(
    image: pa.DataType, is_struct: bool, kind: str, tmp_path: Path
) -> None:
    column = pa.array(IMAGES, pa.binary())
    if image.id in (pa.list_(pa.uint8()).id, pa.large_list(pa.uint8()).id):
        column = pa.array([np.frombuffer(content, np.uint8) for content in IMAGES], image)
    column = column.cast(image)
    if is_struct:
        column = pa.StructArray.from_arrays([column], ["bytes"])
    source = opened(kind, write(kind, tmp_path / "x", pa.table({"image": column, "label": LABELS})))
    assert contents(source) == IMAGES


@pytest.mark.parametrize(
    "label",
    [
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        pa.dictionary(pa.int32(), pa.int64()),
    ],
    ids=str,
)
def test_labels_of_every_type_of_number_are_read(
    label: pa.DataType, kind: str, tmp_path: Path
) -> None:
    labels = pa.array(LABELS)
    is_dictionary = pa.types.is_dictionary(label)
    table = image_table(IMAGES, labels.dictionary_encode() if is_dictionary else labels.cast(label))
    source = opened(kind, write(kind, tmp_path / "x", table))
    assert source.labels.tolist() == LABELS
    assert source.classes == ("0", "1")


@pytest.mark.parametrize(
    "label",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())],
    ids=str,
)
def test_labels_that_are_names_are_numbered_like_class_folders(
    label: pa.DataType, kind: str, tmp_path: Path
) -> None:
    for number, names in enumerate((["b", "a", "b"], ["c", "b", "c"])):
        table = image_table(IMAGES[:3], pa.array(names).cast(label))
        write(kind, tmp_path / str(number), table)
    source = opened(kind, tmp_path)
    assert source.classes == ("a", "b", "c")
    assert source.labels.tolist() == [1, 0, 1, 2, 1, 2]


def test_labels_are_of_one_kind_in_all_files(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "a", image_table(IMAGES, LABELS))
    write(kind, tmp_path / "b", image_table(IMAGES, list("ababab")))
    with pytest.raises(SourceError, match="numbers in some files and names in others"):
        opened(kind, tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], r"1 of 3 images are without a label.* in row 1"),
        ([-1, 0, -1], "2 of 3 images have label -1.*test splits.*without a class"),
        ([0, -2, 1], "label -2: images without a class"),
        (pa.array([0, 1, 2**64 - 1], pa.uint64()), "18446744073709551615"),
        ([0, 1, 100_000], "label 100000: more than 100000 classes"),
        ([0.0, 1.0, 2.0], "expected whole numbers or names in the column 'label', got double"),
    ],
)
def test_labels_that_are_none_are_refused(
    labels: Sequence[object], message: str, kind: str, tmp_path: Path
) -> None:
    path = write(kind, tmp_path / "x", image_table(IMAGES[:3], labels))
    with pytest.raises(SourceError, match=message):
        opened(kind, path)


def test_names_of_the_classes_are_those_of_the_metadata(kind: str, tmp_path: Path) -> None:
    names = ["tench", "goldfish", "great white shark"]
    for number in range(2):
        write(kind, tmp_path / str(number), image_table(IMAGES, LABELS, names))
    assert opened(kind, tmp_path).classes == tuple(names)
    # Another program wrote this one, and kept no metadata.
    write(kind, tmp_path / "1", image_table(IMAGES, LABELS))
    assert opened(kind, tmp_path).classes == tuple(names)
    write(kind, tmp_path / "1", image_table(IMAGES, LABELS, names[::-1]))
    with pytest.raises(SourceError, match="call the classes differently"):
        opened(kind, tmp_path)
    with pytest.raises(SourceError, match="label 1, but names for 1 classes"):
        opened(kind, write(kind, tmp_path / "1", image_table(IMAGES, LABELS, names[:1])))


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("img", "cls"),
        ("jpg", "labels"),
        ("image", "fine_label"),
        ("png", "class"),
        ("webp", "label"),
    ],
)
def test_columns_of_usual_names_are_found(
    image: str, label: str, kind: str, tmp_path: Path
) -> None:
    columns = {"id": LABELS, image: structs([None] * 6), label: LABELS, "coarse_label": [7] * 6}
    source = opened(kind, write(kind, tmp_path / "x", pa.table(columns)))
    assert contents(source) == IMAGES
    assert source.labels.tolist() == LABELS


def test_columns_that_the_metadata_declare_are_found(kind: str, tmp_path: Path) -> None:
    table = pa.table({"scan": structs([None] * 6), "finding": LABELS, "age": [50] * 6})
    metadata = (
        '{"info": {"features": {"scan": {"_type": "Image"}, "age": {"_type": "Value"}, '
        '"finding": {"_type": "ClassLabel", "names": ["none", "some"]}}}}'
    )
    table = table.replace_schema_metadata({"huggingface": metadata})
    source = opened(kind, write(kind, tmp_path / "x", table))
    assert source.classes == ("none", "some")
    assert contents(source) == IMAGES


def test_columns_of_any_name_can_be_named(kind: str, tmp_path: Path) -> None:
    columns = {"image": LABELS, "label": ["x"] * 6, "scan.raw": IMAGES, "finding": LABELS[::-1]}
    path = write(kind, tmp_path / "x", pa.table(columns))
    source = opened(kind, path, image_column="scan.raw", label_column="finding")
    assert contents(source) == IMAGES
    assert source.labels.tolist() == LABELS[::-1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABELS}, r"expected a column of images, got label \(int64\).*image_column"),
        ({"image": IMAGES}, r"expected a column of labels, got image \(binary\).*label_column"),
        ({"img": IMAGES, "jpg": IMAGES, "label": LABELS}, 'img or jpg.*image_column = "img"'),
        ({"image": IMAGES, "cls": LABELS, "labels": LABELS}, 'labels or cls.*_column = "labels"'),
        ({"image": LABELS, "label": LABELS}, "bytes or paths of image files in the column 'image'"),
        ({"image": [{"bytes": "x"}] * 6, "label": LABELS}, "expected bytes or paths"),
        ({"image": IMAGES, "label": [[0, 1]] * 6}, "whole numbers or names in the column 'label'"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(
    columns: dict[str, list[object]], message: str, kind: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=rf"x\.{kind}: .*{message}"):
        opened(kind, write(kind, tmp_path / "x", pa.table(columns)))


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    key: str, kind: str, tmp_path: Path
) -> None:
    path = write(kind, tmp_path / "x", image_table(IMAGES, LABELS))
    with pytest.raises(SourceError, match=r"'scan', got image \(binary\), label \(int64\)"):
        opened(kind, path, **{key: "scan"})


@pytest.mark.parametrize(
    "path",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_keys_are_the_paths_whatever_their_type(
    path: pa.DataType, kind: str, tmp_path: Path
) -> None:
    parts = [pa.array(IMAGES), pa.array(["./a/1.jpg", *"bcdef"]).cast(path)]
    table = image_table(pa.StructArray.from_arrays(parts, ["bytes", "path"]), LABELS)
    source = opened(kind, write(kind, tmp_path / "x", table))
    assert source.keys == ("a/1.jpg", *"bcdef")
    assert contents(source) == IMAGES


def test_paths_of_windows_are_keys_with_slashes(kind: str, tmp_path: Path) -> None:
    table = image_table(structs([rf"train\n01\{row}.jpg" for row in range(6)]), LABELS)
    source = opened(kind, write(kind, tmp_path / "x", table))
    assert source.keys == tuple(f"train/n01/{row}.jpg" for row in range(6))


@pytest.mark.parametrize(
    "odd", [None, "", "a", "/home/me/f.jpg", r"C:\me\f.jpg", r"\\host\f.jpg", "../f.jpg"]
)
def test_rows_are_the_keys_where_paths_are_not_names(
    odd: str | None, kind: str, tmp_path: Path
) -> None:
    table = image_table(structs([*"abcde", odd]), LABELS)
    source = opened(kind, write(kind, tmp_path / "x", table))
    assert source.keys == tuple(f"x.{kind}/{row}" for row in range(6))
    assert contents(source) == IMAGES


def test_image_files_beside_a_table_are_read(kind: str, tmp_path: Path) -> None:
    paths = ["images/0.jpg", r"images\1.jpg", "images/2.jpg"]
    for number, image in enumerate(IMAGES[:3]):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.jpg").write_bytes(image)
    table = image_table(structs(paths, [None, None, b"inside"]), [0, 0, 0])
    write(kind, tmp_path / "data" / "beside", table)
    source = opened(kind, tmp_path)
    assert contents(source) == [*IMAGES[:2], b"inside"]
    stamps = [source.stamp(row) for row in range(3)]
    os.utime(tmp_path / "images" / "1.jpg", ns=(0, 0))
    assert [source.stamp(row) == stamps[row] for row in range(3)] == [True, False, True]


def test_a_column_of_paths_is_taken_as_such(kind: str, tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"zero")
    table = pa.table({"file_name": ["0.jpg"], "label": [0]})
    path = write(kind, tmp_path / "x", table)
    assert contents(opened(kind, path, image_column="file_name")) == [b"zero"]
    with pytest.raises(SourceError, match="expected a column of images"):
        opened(kind, path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "no bytes in this row"),
        ({"bytes": None, "path": None}, r"no bytes in this row \(.*, row 1\)"),
        ({"bytes": None, "path": "/etc/passwd"}, "the path '/etc/passwd', which is not one inside"),
        ({"bytes": None, "path": r"D:\data\1.jpg"}, "not one inside the data set"),
        ({"bytes": None, "path": "../outside.jpg"}, "not one inside the data set"),
        ({"bytes": None, "path": "https://host/1.jpg"}, "not one inside the data set"),
        ({"bytes": None, "path": "gone.jpg"}, "no file .*gone.jpg"),
    ],
)
def test_a_row_without_bytes_is_an_error_of_that_image(
    image: object, message: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"x")
    rows = [{"bytes": b"x", "path": "a"}, image, {"bytes": b"y", "path": "b"}]
    source = opened(kind, write(kind, tmp_path / "data" / "x", image_table(rows, [0, 0, 0])))
    with pytest.raises(ValueError, match=message):
        source.read(1)
    assert source.stamp(1) != 0
    assert (source.read(0), source.read(2)) == (b"x", b"y")


LAYOUTS: dict[str, Callable[[str, int], str]] = {
    "a snapshot": lambda split, number: f"data/{split}-{number:05d}-of-00002",
    "a snapshot with hashes": lambda split, number: f"data/{split}-{number:05d}-of-00002-ab12cd34",
    "a snapshot without a folder": lambda split, number: f"{split}-{number:05d}-of-00002",
    "converted files": lambda split, number: f"default/{split}/{number:04d}",
    "converted in part": lambda split, number: f"default/partial-{split}/{number:04d}",
    "a folder of the cache": lambda split, number: f"my-set-{split}-{number:05d}-of-00002",
    "saved to the disk": lambda split, number: f"{split}/data-{number:05d}-of-00002",
    "numbered": lambda split, number: f"{split}_{number}",
}


def lay_out(kind: str, layout: str, folder: Path, splits: Sequence[str]) -> None:
    for split in splits:
        for number in range(2):
            table = shard(f"{split}/{number}/0", f"{split}/{number}/1")
            write(kind, folder / LAYOUTS[layout](split, number), table)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_is_chosen_in_every_layout(layout: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "test"  # its own name tells nothing
    lay_out(kind, layout, folder, ["train", "validation", "test"])
    (folder / "README.md").write_text("---")
    (folder / ".cache").mkdir()
    shutil.copy(next(folder.rglob(f"*.{kind}")), folder / ".cache" / f"train-9.{kind}")
    with pytest.raises(
        SourceError, match=r'several splits: train, test, validation\. .*dataset.split = "train"'
    ):
        opened(kind, folder)
    for split in ("train", "validation", "test"):
        expected = [f"{split}/{number}/{row}" for number in range(2) for row in range(2)]
        assert list(opened(kind, folder, split=split).keys) == expected
    assert opened(kind, folder, split="val").keys == opened(kind, folder, split="validation").keys
    with pytest.raises(
        SourceError, match=r"no files of 'extra'.*There are train, test, validation"
    ):
        opened(kind, folder, split="extra")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_split_need_not_be_chosen(layout: str, kind: str, tmp_path: Path) -> None:
    lay_out(kind, layout, tmp_path, ["train"])
    assert len(opened(kind, tmp_path).keys) == 4
    # The keys are the same from any folder on the way.
    deeper = next(tmp_path.rglob(f"*.{kind}")).parent
    assert opened(kind, deeper).keys == opened(kind, tmp_path).keys


@pytest.mark.parametrize("layout", ["a snapshot", "converted files", "saved to the disk"])
def test_splits_have_any_name(layout: str, kind: str, tmp_path: Path) -> None:
    lay_out(kind, layout, tmp_path, ["train", "train_small", "extra"])
    with pytest.raises(SourceError, match="several splits: train, extra, train_small"):
        opened(kind, tmp_path)
    for split in ("train", "train_small", "extra"):
        assert opened(kind, tmp_path, split=split).keys[0] == f"{split}/0/0"


def test_files_of_no_split_are_not_mixed_with_those_of_one(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "train-0", shard("a"))
    write(kind, tmp_path / "more", shard("b"))
    with pytest.raises(SourceError, match=rf"several splits: train; of none: more\.{kind}"):
        opened(kind, tmp_path)
    assert opened(kind, tmp_path, split="train").keys == ("a",)
    with pytest.raises(SourceError, match=r"'test' at .*Their names tell of no split"):
        opened(kind, tmp_path / f"more.{kind}", split="test")


def test_a_pattern_is_a_choice_too(kind: str, tmp_path: Path) -> None:
    lay_out(kind, "a snapshot", tmp_path, ["train", "train_small", "test"])
    assert len(opened(kind, tmp_path / "data" / "train*").keys) == 8
    with pytest.raises(SourceError, match="several splits: train, test"):
        opened(kind, tmp_path / "data" / "t*")


def test_two_data_sets_below_a_folder_are_not_mixed(kind: str, tmp_path: Path) -> None:
    write(kind, tmp_path / "cropped" / "train-00000-of-00001", shard("a"))
    write(kind, tmp_path / "full" / "train-00000-of-00002", shard("b"))
    with pytest.raises(SourceError, match=r"cropped/train-0.* and full/train-0.* two data sets"):
        opened(kind, tmp_path)
    assert opened(kind, tmp_path / "full").keys == ("b",)


def test_files_in_folders_below_others_are_passed_over_and_said(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(kind, tmp_path / "a", shard("a"))
    write(kind, tmp_path / "old" / "b", shard("b"))
    assert opened(kind, tmp_path).keys == ("a",)
    assert f"passed over, in folders below: old/b.{kind}." in capfd.readouterr().err


def test_files_without_rows_or_images_are_passed_over_and_said(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(kind, tmp_path / "0", pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}))
    write(kind, tmp_path / "1", pa.table({"file_name": ["a"], "caption": ["b"]}))
    write(kind, tmp_path / "2", shard("a", "b"))
    source = opened(kind, tmp_path)
    assert contents(source) == [b"a", b"b"]
    said = capfd.readouterr().err
    assert f"passed over, without rows: 0.{kind}." in said
    assert f"passed over, without a column of images: 1.{kind}." in said
    (tmp_path / f"2.{kind}").unlink()
    with pytest.raises(
        SourceError, match=rf"1\.{kind}: expected a column of images, got file_name"
    ):
        opened(kind, tmp_path)
    with pytest.raises(SourceError, match="no rows"):
        opened(kind, tmp_path / f"0.{kind}")


def test_missing_shards_are_said(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lay_out(kind, "a snapshot", tmp_path, ["train"])
    opened(kind, tmp_path)
    assert "files are there" not in capfd.readouterr().err
    next(tmp_path.rglob(f"*-00001-*.{kind}")).unlink()
    opened(kind, tmp_path)
    assert "only 1 of 2 files are there" in capfd.readouterr().err


def test_links_of_the_hub_are_followed_but_not_in_circles(kind: str, tmp_path: Path) -> None:
    """As `huggingface_hub` lays out its cache: names that link to blobs."""
    blob = write(kind, tmp_path / "blobs" / "0", shard("a"))
    snapshot = tmp_path / "snapshots" / "1"
    (snapshot / "data").mkdir(parents=True)
    blob.rename(blob.with_suffix(""))
    (snapshot / "data" / f"train-00000-of-00001.{kind}").symlink_to(blob.with_suffix(""))
    (snapshot / "data" / "round").symlink_to(snapshot)
    assert opened(kind, snapshot).keys == ("a",)


def test_a_folder_of_the_other_kind_says_which_source_reads_it(kind: str, tmp_path: Path) -> None:
    other = next(name for name in KINDS if name != kind)
    write(other, tmp_path / "data" / "x", shard("a"))
    with pytest.raises(SourceError, match=rf'no \.{kind} files.* source = "{other}"'):
        opened(kind, tmp_path)


def test_the_configuration_chooses_split_and_columns(
    kind: str, tmp_path: Path, tiny: Callable[..., Config]
) -> None:
    for split in ("train", "test"):
        table = pa.table({"scan": [split.encode()], "finding": [0]})
        write(kind, tmp_path / "set" / f"{split}-00000-of-00001", table)
    config = tiny(
        f"dataset.source={kind}",
        f"dataset.path={tmp_path / 'set'}",
        "dataset.split=test",
        "dataset.image_column=scan",
        "dataset.label_column=finding",
    )
    source = open_source(config.encode)
    assert source is not None
    assert contents(source) == [b"test"]


@pytest.mark.parametrize("key", ["split", "image_column", "label_column"])
def test_what_only_tables_have_is_refused_elsewhere(key: str, tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=rf"dataset\.{key}: only the sources arrow, parquet"):
        tiny(f"dataset.{key}=train")
