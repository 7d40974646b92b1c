import json
from pathlib import Path

import numpy as np
import packing
import pyarrow as pa
import pytest
from packing import image_table, save_to_disk, write_arrow

from stages.encode.images.sources import Source, SourceError
from stages.encode.images.sources.archives import Archive
from stages.encode.images.sources.arrow_files import ArrowFile
from stages.encode.images.sources.tables import TableSettings

IMAGES = [np.random.default_rng(number).bytes(500) for number in range(10)]
LABELS = [0, 1] * 5
TABLE = image_table(IMAGES, LABELS)


def opened(path: Path, **choice: str) -> Source:
    return packing.opened("arrow", path, **choice)


def write_indexed(path: Path, table: pa.Table, compression: str | None = None) -> Path:
    """A file with an index of its batches, as Polars and Feather write it."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table, max_chunksize=4)
    return path


def test_a_saved_dictionary_of_splits_is_read_by_split(tmp_path: Path) -> None:
    for split, images in (("train", IMAGES), ("test", IMAGES[:2])):
        rows = [{"bytes": image, "path": None} for image in images]
        save_to_disk(tmp_path / split, rows, LABELS[: len(images)], ["a", "b"])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(SourceError, match="several splits: train, test"):
        opened(tmp_path)
    source = opened(tmp_path, split="train")
    assert source.keys[4:6] == ("data-00000-of-00002.arrow/4", "data-00001-of-00002.arrow/0")
    assert source.keys == opened(tmp_path / "train").keys
    assert [source.read(row) for row in range(10)] == IMAGES
    assert source.classes == ("a", "b")


def test_what_datasets_caches_beside_a_data_set_is_passed_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_arrow(tmp_path / "my-set-train.arrow", TABLE)
    write_arrow(tmp_path / "cache-3816c81a7aacddd1.arrow", pa.table({"indices": [3, 1]}))
    write_arrow(tmp_path / "cache-5716c81a7aacddd1_00001_of_00002.arrow", TABLE)
    assert len(opened(tmp_path).keys) == 10
    assert "keeps for itself: cache-3816c81a7aacddd1.arrow, cache-57" in capfd.readouterr().err


def test_a_file_with_an_index_is_read_too(tmp_path: Path) -> None:
    source = opened(write_indexed(tmp_path / "x.arrow", TABLE))
    assert [source.read(row) for row in (9, 0, 4, 3)] == [IMAGES[row] for row in (9, 0, 4, 3)]
    assert source.labels.tolist() == LABELS


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_batches_are_refused(compression: str, tmp_path: Path) -> None:
    path = write_indexed(tmp_path / "x.arrow", TABLE, compression)
    with pytest.raises(SourceError, match=r"x\.arrow: its record batches are compressed.*parquet"):
        opened(path)


def test_images_are_read_from_the_disk_and_not_held(tmp_path: Path) -> None:
    images = [np.random.default_rng(number).bytes(20_000) for number in range(500)]
    path = write_arrow(tmp_path / "x.arrow", image_table(images, [0] * 500), rows=500)
    before = pa.total_allocated_bytes()
    source = opened(path)
    for row in np.random.default_rng(0).permutation(500).tolist():
        assert source.read(row) == images[row]
        assert pa.total_allocated_bytes() - before < 100_000
    assert source.block_rows == 1


def test_a_stream_that_was_cut_off_between_batches_is_refused(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "x.arrow", TABLE)
    places = ArrowFile.of(Archive.at(path), TableSettings(source="arrow")).places
    content = path.read_bytes()
    path.write_bytes(content[: places[2]])
    assert pa.ipc.open_stream(pa.memory_map(str(path))).read_all().num_rows == 8
    with pytest.raises(SourceError, match=r"x\.arrow is no Arrow file, or is cut off"):
        opened(path)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_damaged_batch_is_an_error_of_its_images(is_indexed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    (write_indexed if is_indexed else write_arrow)(path, TABLE)
    content = bytearray(path.read_bytes())
    offsets = np.arange(0, 2500, 500, dtype="<i4").tobytes()
    # That of the second batch.
    second = content.index(offsets, content.index(offsets) + 1)
    content[second + 4 : second + 8] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    source = opened(path)
    for row in (4, 5):
        with pytest.raises(OSError, match=r"x\.arrow: record batch 1 is damaged"):
            source.read(row)
    assert [source.read(row) for row in (0, 6, 8)] == [IMAGES[row] for row in (0, 6, 8)]


def test_labels_that_point_nowhere_are_refused(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "x.arrow", image_table(IMAGES, [*("one", "two") * 5]))
    content = bytearray(path.read_bytes())
    content[content.index(b"one")] = 0xFF
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.arrow is no Arrow file, or is cut off or damaged"):
        opened(path)
