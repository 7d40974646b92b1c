import multiprocessing
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packing import write_parquet

from stages.encode.sources import Source, SourceError, parquet_files
from stages.encode.sources.parquet import parquet_rows
from stages.encode.sources.parquet_files import ParquetFile
from stages.encode.sources.row_groups import GROUPS_HELD, RowGroups

IMAGES = [np.random.default_rng(number).bytes(500) for number in range(10)]
LABELS = [0, 1] * 5


def opened(path: Path) -> Source:
    return parquet_rows(path, 32)


def named(paths: list[str | None]) -> list[dict[str, object]]:
    return [{"bytes": image, "path": path} for image, path in zip(IMAGES, paths, strict=True)]


def test_without_pyarrow_the_command_to_get_it_is_named() -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from stages.encode.sources import SOURCES, SourceError\n"
        "try: SOURCES['parquet'](None, 32)\n"
        "except SourceError as error: sys.exit(str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stderr.strip().endswith("Run `pip install 'pyarrow>=17'`.")


def test_the_rows_of_a_group_are_a_block(tmp_path: Path) -> None:
    assert opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=4)).block_rows == 4
    assert opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=99)).block_rows == 10


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("label", [pa.int8(), pa.int32(), pa.uint64()])
def test_columns_of_every_fitting_type_are_read(
    kind: pa.DataType, label: pa.DataType, tmp_path: Path
) -> None:
    columns = {"label": pa.array(LABELS, label), "image": pa.array(IMAGES, kind)}
    pq.write_table(pa.table({**columns, "more": LABELS}), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    assert [source.read(row) for row in range(10)] == IMAGES
    assert source.labels.tolist() == LABELS


@pytest.mark.parametrize(
    "columns",
    [
        {"image": IMAGES},
        {"label": LABELS},
        {"image": IMAGES, "label": list("abababacab")},
        {"image": IMAGES, "label": [0.5] * 10},
        {"image": LABELS, "label": LABELS},
        {"image": [{"path": "x"}] * 10, "label": LABELS},
        {"image": [{"bytes": "text"}] * 10, "label": LABELS},
    ],
)
def test_other_columns_are_refused(columns: dict[str, list[object]], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet: (expected columns|column `image` has no)"):
        opened(tmp_path / "x.parquet")


@pytest.mark.parametrize("label", [None, -1])
def test_images_without_a_class_are_refused(label: int | None, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"without a (label|class)"):
        opened(write_parquet(tmp_path / "x.parquet", IMAGES[:2], [0, label]))


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="no rows"):
        opened(tmp_path / "x.parquet")


@pytest.mark.parametrize("paths", [[None] * 10, ["same"] * 10, [*map(str, range(9)), ""]])
def test_rows_are_the_keys_where_paths_are_not_unique(
    paths: list[str | None], tmp_path: Path
) -> None:
    source = opened(write_parquet(tmp_path / "x.parquet", named(paths), LABELS))
    assert source.keys == tuple(f"x.parquet/{row}" for row in range(10))
    assert source.read(7) == IMAGES[7]


@pytest.mark.parametrize("path", ["/root/x.jpg", "C:\\x.jpg", "../x.jpg"])
def test_a_path_that_leads_out_is_refused_as_a_key(path: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is refused"):
        opened(write_parquet(tmp_path / "x.parquet", named([*"abcdefghi", path]), LABELS))


def test_names_of_the_classes_are_those_of_the_metadata(tmp_path: Path) -> None:
    names = ["tench", "goldfish", "great white shark"]
    for number in range(2):
        write_parquet(tmp_path / f"{number}.parquet", IMAGES, LABELS, names=names)
    assert opened(tmp_path).classes == tuple(names)
    write_parquet(tmp_path / "1.parquet", IMAGES, LABELS, names=names[::-1])
    with pytest.raises(SourceError, match="call the classes differently"):
        opened(tmp_path)
    with pytest.raises(SourceError, match="label 1, but names for 1 classes"):
        opened(write_parquet(tmp_path / "1.parquet", IMAGES, LABELS, names=names[:1]))


def test_a_row_without_bytes_is_an_error_of_that_image(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "/etc/passwd"}, None, {"bytes": b"x", "path": "b"}]
    source = opened(write_parquet(tmp_path / "x.parquet", rows, [0, 0, 0]))
    for row in (0, 1):
        with pytest.raises(ValueError, match="no bytes in this row"):
            source.read(row)
    assert source.read(2) == b"x"


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


def test_a_row_group_too_large_to_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=8)
    monkeypatch.setattr(parquet_files, "MAX_GROUP_BYTES", 4000)
    with pytest.raises(SourceError, match=r"row group 0 has .* `row_group_size=100`"):
        opened(path)


def test_a_row_group_that_claims_to_be_small_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A dictionary holds the one image once, however many rows refer to it.
    path = write_parquet(tmp_path / "x.parquet", [bytes(5000)] * 300, [0] * 300, rows=300)
    monkeypatch.setattr(parquet_files, "MAX_GROUP_BYTES", 100_000)
    with pytest.raises(OSError, match="larger than it claims"):
        opened(path).read(0)


def _count_groups(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    decoded: Counter[int] = Counter()
    read_group = ParquetFile.read_group

    def counted(self: ParquetFile, group: int) -> pa.ChunkedArray:
        decoded[group] += 1
        return read_group(self, group)

    monkeypatch.setattr(ParquetFile, "read_group", counted)
    return decoded


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
    source = opened(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS, rows=1))
    decoded = _count_groups(monkeypatch)
    last = list(range(10))[-GROUPS_HELD:]
    for row in (*range(10), *last):
        source.read(row)
    assert set(decoded.values()) == {1}
    source.read(0)
    assert decoded[0] == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_group_is_looked_up_does_no_harm(tmp_path: Path) -> None:
    file = ParquetFile.of(
        parquet_files.Archive.at(write_parquet(tmp_path / "x.parquet", IMAGES, LABELS))
    )
    groups = RowGroups([file])

    def child() -> None:
        (tmp_path / "found").write_bytes(groups.read(3))

    with groups._lock:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
    assert (tmp_path / "found").read_bytes() == IMAGES[3]
