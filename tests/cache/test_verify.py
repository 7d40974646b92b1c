from pathlib import Path

import numpy as np
import pytest
from faults import PLANTED, flip
from tiny_cache import ROWS_PER_SHARD, SEED, fill, make_cache, make_column, make_rows

from cache.errors import CacheWriteError
from cache.layout import ArraySpec
from cache.rows import create_cache
from cache.verify import Fault, Remedy, find_faults
from cache.writer import ShardWriter

FLIPS = 200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_cache(tmp_path / "x.zarr")
    return tmp_path / "x.zarr"


def faults(path: Path) -> list[Fault]:
    return find_faults(path, threads=2)


def test_a_whole_cache_has_no_faults(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.slow
def test_a_bit_flipped_anywhere_in_a_shard_is_found(path: Path) -> None:
    folder = path / "features/x"
    files = sorted(file for file in folder.rglob("c.*"))
    sizes = np.array([file.stat().st_size for file in files])
    # Every file first, down to the smallest, then anywhere in proportion to size.
    generator = np.random.default_rng(0)
    chosen = [*range(len(files)), *generator.choice(len(files), FLIPS, p=sizes / sizes.sum())]
    for number in chosen:
        bit = int(generator.integers(0, 8 * sizes[number]))
        flip(files[number], bit)
        found = faults(path)
        shard = int(files[number].name.split(".")[1])
        assert {fault.shard for fault in found} <= {shard, None}, (files[number], bit)
        assert shard in {fault.shard for fault in found}
        flip(files[number], bit)
    assert faults(path) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named_with_its_place(path: Path, name: str) -> None:
    planted = PLANTED[name]
    planted.plant(path / "features/x")
    found = [(fault.where, fault.what) for fault in faults(path)]
    where = "rows" if planted.where == "rows" else f"features/x{planted.where}"
    assert any(place == where and planted.what in said for place, said in found), found


def test_an_unfinished_column_is_counted(path: Path) -> None:
    make_column(path, "features/y")
    (found,) = faults(path)
    assert (found.where, found.remedy) == ("features/y", Remedy.BUILD)
    assert found.what == "3 of 3 shards are not finished"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_never_written(path: Path, value: float) -> None:
    column = make_column(path, "features/y")
    batch = {spec.name: np.zeros((8, *spec.row_shape), spec.dtype) for spec in column.arrays}
    batch["tokens"][5, 3, 2] = value
    with (
        pytest.raises(
            CacheWriteError, match="row 13 holds NaN, infinity or a value beyond float16"
        ),
        ShardWriter(column, 1, b"") as writer,
    ):
        writer.write(batch)
    assert not list((column.folder / "tokens").glob("*c.*"))


def test_infinities_written_by_other_means_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows()
    create_cache(tmp_path / "x.zarr", rows, ROWS_PER_SHARD, SEED)
    column = make_column(tmp_path / "x.zarr")
    monkeypatch.setattr("cache.writer.finite_rows", lambda rows: np.ones(len(rows), bool))

    def infinite(spec: ArraySpec, rows: int) -> np.ndarray:
        kind = np.inf if spec.dtype == "float16" else 1
        return np.full((rows, *spec.row_shape), kind, spec.dtype)

    monkeypatch.setattr("tiny_cache.values", infinite)
    for shard in range(3):
        fill(column, shard, rows)
    assert {fault.what for fault in faults(tmp_path / "x.zarr")} == {"it holds NaN or infinity"}
