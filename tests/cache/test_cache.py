import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from faults import PLANTED
from tiny_cache import (
    ARRAYS,
    ROWS,
    ROWS_PER_SHARD,
    SEED,
    fill,
    make_cache,
    make_column,
    make_rows,
    values,
)

from cache.errors import DamagedCacheError, IncompleteCacheError, NotACacheError, StaleCacheError
from cache.layout import ArraySpec, Column
from cache.ledger import missing
from cache.metadata import check_recipe, create_column, read_column
from cache.reader import Cache
from cache.rows import create_cache, read_rows
from cache.storage import unwarned
from cache.writer import ShardWriter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(path)
    return path


def test_any_zarr_library_reads_what_was_written(finished: Path) -> None:
    group = zarr.open_group(finished, mode="r")
    for spec in ARRAYS:
        with unwarned():
            stored = group[f"features/x/{spec.name}"][:]
        np.testing.assert_array_equal(stored, values(spec))


def test_checksums_are_those_of_the_rows(finished: Path) -> None:
    stored = zarr.open_group(finished, mode="r")["features/x/crc32c"][:]
    expected = [
        [google_crc32c.value(values(spec)[row].tobytes()) for spec in ARRAYS] for row in range(ROWS)
    ]
    assert stored.tolist() == expected


def test_the_row_table_comes_back_as_it_was(finished: Path) -> None:
    rows, stored = make_rows(), read_rows(finished)
    assert stored.key.tolist() == rows.key.tolist()
    assert stored.classes == rows.classes
    for name in ("label", "source_index", "content_hash", "stamp"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(rows, name))


def test_a_missing_column_and_an_unfinished_one_are_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, SEED)
    with pytest.raises(IncompleteCacheError, match="no column features/x"):
        Cache(path).column("features/x")
    column = make_column(path)
    fill(column, 1, rows)
    assert missing(column, rows) == [0, 2]
    with pytest.raises(IncompleteCacheError, match="2 of 3 shards are missing"):
        Cache(path).column("features/x")


@pytest.mark.parametrize(
    "name",
    [
        "an edited recipe",
        "an edited list of arrays",
        "an edited shape",
        "an array's metadata gone",
        "a column's metadata gone",
        "an edited label",
    ],
)
def test_damaged_metadata_is_refused_with_its_remedy(tmp_path: Path, name: str) -> None:
    PLANTED[name].plant(make_cache(tmp_path / "x.zarr").folder)
    with pytest.raises(DamagedCacheError, match="repa-cache build --repair"):
        Cache(tmp_path / "x.zarr").column("features/x")


def test_a_shard_made_from_other_images_counts_as_missing(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, SEED)
    column = make_column(path)
    for shard in range(column.shards):
        fill(column, shard, rows)
    rows.content_hash[9] += 1
    assert missing(column, rows) == [1]


class PowerFailureError(Exception):
    pass


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    path, rows = tmp_path / "x.zarr", make_rows()
    create_cache(path, rows, ROWS_PER_SHARD, SEED)
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
    column = read_column(finished, "features/x", ROWS)
    check_recipe(column, {"model": "features/x", "size": 3, "storage": "float16"})
    with pytest.raises(StaleCacheError, match=r"model: cache \"features/x\", configuration \"n\""):
        check_recipe(column, {"model": "n", "size": 3, "storage": "float16"})


def test_a_folder_that_is_no_cache_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACacheError, match="There is no cache at"):
        Cache(tmp_path / "nothing.zarr")
    with pytest.raises(NotACacheError, match="is not a cache"):
        Cache(tmp_path)
    create_cache(tmp_path / "x.zarr", make_rows(), ROWS_PER_SHARD, SEED)
    zarr.open_group(tmp_path / "x.zarr").attrs["format_version"] = 99
    with pytest.raises(NotACacheError, match="cache format is 99"):
        Cache(tmp_path / "x.zarr")


def test_writing_a_shard_needs_memory_for_a_batch_and_not_for_the_shard(tmp_path: Path) -> None:
    rows = make_rows()
    create_cache(tmp_path / "x.zarr", rows, 1024, SEED)
    wide = ArraySpec("tokens", "float16", (256, 128))
    column = Column("features/x", tmp_path / "x.zarr/features/x", (wide,), {}, 1024, 1024)
    create_column(column, {})
    batch = np.ones((32, *wide.row_shape), np.float16)
    tracemalloc.start()
    with ShardWriter(column, 0, b"") as writer:
        for _ in range(32):
            writer.write({"tokens": batch})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < column.shard_bytes(wide, 0) / 20
