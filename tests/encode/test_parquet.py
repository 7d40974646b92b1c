import multiprocessing
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import packing
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing import write_parquet

from stages.encode.images.sources import Source, SourceError, parquet_files, row_groups
from stages.encode.images.sources.parquet_files import ParquetFile
from stages.encode.images.sources.row_groups import RowGroups
from stages.encode.images.sources.tables import TableSettings

IMAGES = [np.random.default_rng(number).bytes(500) for number in range(10)]
LABELS = [0, 1] * 5


def opened(path: Path) -> Source:
    return packing.opened("parquet", path)


def test_the_rows_of_a_group_are_a_block(tmp_path: Path) -> None:
    assert opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=4)).block_rows == 4
    assert opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=99)).block_rows == 10


def test_a_damaged_row_group_is_an_error_of_its_images(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES[5][200:300])] ^= 1
    path.write_bytes(content)
    source = opened(path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"x\.parquet: row group 1 is damaged"):
            source.read(4)
    assert [source.read(row) for row in (3, 8)] == [IMAGES[3], IMAGES[8]]


def cut_into_parts(monkeypatch: pytest.MonkeyPatch, rows: int, held: int) -> None:
    """Parts of as many of `IMAGES`, and as many of them held as given."""
    monkeypatch.setattr(parquet_files, "PART_BYTES", rows * 520)
    monkeypatch.setattr(row_groups, "HELD_BYTES", held * rows * 520)


@pytest.mark.parametrize(
    "order", [[*range(10)], [*range(10)][::-1], [9, 0, 5, 1, 8, 2, 7, 3, 6, 4]]
)
def test_a_large_row_group_is_read_in_parts(
    order: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_into_parts(monkeypatch, rows=2, held=2)
    source = opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=10))
    assert [source.read(row) for row in order] == [IMAGES[row] for row in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order * 20)) == [IMAGES[row] for row in order] * 20
    assert source.block_rows == 10


def test_images_in_order_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_into_parts(monkeypatch, rows=2, held=2)
    source = opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=10))
    begun = _count_groups(monkeypatch)
    for row in range(10):
        source.read(row)
    assert begun == {0: 1}


def test_only_a_part_of_a_large_row_group_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 MB in one row group, of which 4 MB are held, and 1 MB decoded at a time."""
    monkeypatch.setattr(parquet_files, "PART_BYTES", 1 << 20)
    monkeypatch.setattr(row_groups, "HELD_BYTES", 4 << 20)
    images = [np.random.default_rng(number).bytes(20_000) for number in range(2000)]
    table = pa.table({"image": images, "label": [0] * len(images)})
    pq.write_table(
        table,
        tmp_path / "x.parquet",
        use_dictionary=False,
        write_batch_size=16,
        write_page_checksum=True,
    )
    del table
    source, before = opened(tmp_path / "x.parquet"), pa.total_allocated_bytes()
    largest = 0
    for row, image in enumerate(images):
        assert source.read(row) == image
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert 4 << 20 < largest < 12 << 20, largest


def test_a_row_group_that_claims_to_be_small_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A dictionary holds the one image once, however many rows refer to it.
    path = write_parquet(tmp_path / "x.parquet", [bytes(5000)] * 300, [0] * 300, rows=300)
    monkeypatch.setattr(parquet_files, "MAX_PART_BYTES", 100_000)
    with pytest.raises(OSError, match="larger than it claims"):
        opened(path).read(0)


def _count_groups(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each row group is begun."""
    begun: Counter[int] = Counter()
    images = ParquetFile.images

    def counted(self: ParquetFile, group: int) -> Generator[pa.ChunkedArray]:
        begun[group] += 1
        return images(self, group)

    monkeypatch.setattr(ParquetFile, "images", counted)
    return begun


def test_a_row_group_is_decoded_once_for_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=5))
    decoded = _count_groups(monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [*range(10)] * 20)) == IMAGES * 20
    assert decoded == {0: 1, 1: 1}


def test_only_the_row_groups_used_last_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "HELD_BYTES", 4 * 510)
    source = opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=1))
    decoded = _count_groups(monkeypatch)
    for row in (*range(10), *range(6, 10)):
        source.read(row)
    assert set(decoded.values()) == {1}
    source.read(0)
    assert decoded[0] == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_group_is_looked_up_does_no_harm(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS)
    file = ParquetFile.of(parquet_files.Archive.at(path), TableSettings(source="parquet"))
    groups = RowGroups([file])

    def child() -> None:
        (tmp_path / "found").write_bytes(groups.read(0, 3) or b"")

    with groups._lock:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
    assert (tmp_path / "found").read_bytes() == IMAGES[3]


def test_a_file_that_ends_before_its_footer_says_so(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS)
    content = path.read_bytes()
    # As a download that was resumed at the wrong place.
    path.write_bytes(content[:4] + content[7000:])
    with pytest.raises(SourceError, match=r"x\.parquet is cut off: row group [12] ends at byte"):
        opened(path)


def test_a_row_group_that_was_zeroed_is_an_error_of_its_images(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS)
    content = path.read_bytes()
    start = content.index(IMAGES[4][:50]) - 20
    path.write_bytes(content[:start] + bytes(1500) + content[start + 1500 :])
    source = opened(path)
    with pytest.raises(OSError, match=r"x\.parquet: row group 1 is damaged"):
        source.read(4)
    assert source.read(0) == IMAGES[0]
