from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import IncompleteCacheError, NotACacheError, RowsChangedError, StaleCacheError
from cache.layout import ArraySpec, Column, check_recipe, create_column, read_column
from cache.ledger import missing
from cache.reader import Cache
from cache.rows import RowTable, check_same_rows, content_hash, create_cache, read_rows
from cache.writer import ShardWriter

ROWS, ROWS_PER_SHARD = 21, 8
SHARDED = ArraySpec("tokens", "float16", (16, 130))
DENSE = ArraySpec("class_token", "float16", (130,))


def make_rows(count: int = ROWS) -> RowTable:
    keys = [f"n{i % 3}/photo ü {i}.jpg" for i in range(count)]
    labels = np.array([i % 3 for i in range(count)], np.int32)
    hashes = np.array([content_hash(key.encode()) for key in keys], np.uint64)
    return RowTable.permuted(keys, labels, hashes, ("a", "b", "c"), seed=5)


def values(spec: ArraySpec) -> np.ndarray:
    shape = (ROWS, *spec.row_shape)
    return np.random.default_rng(len(spec.name)).normal(size=shape).astype(spec.dtype)


def make_column(path: Path, name: str = "features/x") -> Column:
    column = Column(
        name, path / name, (SHARDED, DENSE), {"model": "m", "size": 3}, ROWS, ROWS_PER_SHARD
    )
    create_column(column, {"created": "today"})
    return read_column(path, name)


def fill(column: Column, shard: int, rows: RowTable, batch: int = 3) -> None:
    span = column.shard_rows(shard)
    with ShardWriter(column, shard, rows.digest(span)) as writer:
        for start in range(span.start, span.stop, batch):
            stop = min(start + batch, span.stop)
            writer.write({spec.name: values(spec)[start:stop] for spec in column.arrays})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    rows = make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, seed=5)
    column = make_column(path)
    for shard in (2, 0, 1):
        fill(column, shard, rows)
    return path


def test_any_zarr_library_reads_what_was_written(finished: Path) -> None:
    group = zarr.open_group(finished, mode="r")
    for spec in (SHARDED, DENSE):
        np.testing.assert_array_equal(group[f"features/x/{spec.name}"][:], values(spec))


@settings(max_examples=50)
@given(st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_any_rows_are_read_in_any_order(finished: Path, rows: list[int]) -> None:
    reader = Cache(finished).column("features/x")
    for spec in (SHARDED, DENSE):
        np.testing.assert_array_equal(reader.read(spec.name, rows), values(spec)[rows])


def test_rows_are_read_into_the_callers_buffer(finished: Path) -> None:
    buffer = np.zeros((2, *SHARDED.row_shape), np.float16)
    read = Cache(finished).column("features/x").read("tokens", [20, 0], out=buffer)
    assert read is buffer
    np.testing.assert_array_equal(buffer, values(SHARDED)[[20, 0]])


@pytest.mark.parametrize("row", [-1, ROWS])
def test_rows_out_of_range_are_refused(finished: Path, row: int) -> None:
    with pytest.raises(IndexError, match="rows lie in 0 to 20"):
        Cache(finished).column("features/x").read("tokens", [0, row])


def test_checksums_are_those_of_the_rows(finished: Path) -> None:
    import google_crc32c

    stored = zarr.open_group(finished, mode="r")["features/x/crc32c"][:]
    expected = [
        [google_crc32c.value(values(spec)[row].tobytes()) for spec in (SHARDED, DENSE)]
        for row in range(ROWS)
    ]
    assert stored.tolist() == expected


def test_the_row_table_comes_back_as_it_was(finished: Path) -> None:
    rows, stored = make_rows(), read_rows(finished)
    assert stored.key.tolist() == rows.key.tolist()
    assert stored.classes == rows.classes
    for name in ("label", "source_index", "content_hash"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(rows, name))


def test_a_missing_column_and_an_unfinished_one_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, seed=5)
    with pytest.raises(IncompleteCacheError, match="no column features/x"):
        Cache(path).column("features/x")
    column = make_column(path)
    fill(column, 1, rows)
    assert missing(column, rows) == [0, 2]
    with pytest.raises(IncompleteCacheError, match="2 of 3 shards are missing"):
        Cache(path).column("features/x")


def test_a_shard_made_from_other_images_counts_as_missing(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, seed=5)
    column = make_column(path)
    for shard in range(column.shards):
        fill(column, shard, rows)
    rows.content_hash[9] += 1
    assert missing(column, rows) == [1]


class PowerFailureError(Exception):
    pass


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, seed=5)
    column = make_column(path)
    before = sorted(column.folder.rglob("*"))
    row = {spec.name: values(spec)[:1] for spec in column.arrays}
    with pytest.raises(PowerFailureError), ShardWriter(column, 0, b"") as writer:
        writer.write(row)
        raise PowerFailureError
    with pytest.raises(ValueError, match="1 of 8 rows written"), ShardWriter(column, 0, b"") as w:
        w.write(row)
    with (
        pytest.raises(ValueError, match=r"expected float16 \(1, 16, 130\), got float32"),
        ShardWriter(column, 0, b"") as w,
    ):
        w.write({name: array.astype(np.float32) for name, array in row.items()})
    assert sorted(column.folder.rglob("*")) == before


def test_another_recipe_is_named_field_by_field(finished: Path) -> None:
    column = read_column(finished, "features/x")
    check_recipe(column, {"model": "m", "size": 3})
    with pytest.raises(StaleCacheError, match=r"model: cache \"m\", configuration \"n\""):
        check_recipe(column, {"model": "n", "size": 3})


def test_changed_vanished_and_new_images_are_named(tmp_path: Path) -> None:
    old, new = make_rows(), make_rows(ROWS + 1)
    check_same_rows(tmp_path, old, make_rows())
    changed = new.key.tolist().index("n0/photo ü 3.jpg")
    new.content_hash[changed] += 1
    vanished = new.key.tolist().index("n1/photo ü 4.jpg")
    new.key[vanished] = "n1/another.jpg"
    with pytest.raises(RowsChangedError) as error:
        check_same_rows(tmp_path, old, new)
    message = str(error.value)
    assert "1 changed: n0/photo ü 3.jpg" in message
    assert "1 vanished: n1/photo ü 4.jpg" in message
    assert "2 new: " in message
    assert "n1/another.jpg" in message


def test_a_folder_that_is_no_cache_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="There is no cache at"):
        Cache(tmp_path / "nothing.zarr")
    with pytest.raises(NotACacheError, match="is not a cache"):
        Cache(tmp_path)
    create_cache(tmp_path / "x.zarr", make_rows(), ROWS_PER_SHARD, seed=5)
    zarr.open_group(tmp_path / "x.zarr").attrs["format_version"] = 99
    with pytest.raises(NotACacheError, match="cache format 99"):
        Cache(tmp_path / "x.zarr")
