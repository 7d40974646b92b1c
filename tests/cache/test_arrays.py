"""Readers that stand between a caller and rows as they lie: decompressing, and joining arrays."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import ROW_LISTS, read
from tiny_cache import COMPRESSED, DENSE, SHARDED, make_cache, values

from cache.arrays import CompressedRows, JoinedRows, MemoryRows, hold_small, open_rows
from cache.reader import Cache
from cache.shard_files import DirectRows
from cache.storage import compress, decompress, unwarned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(path)
    return path


@given(st.binary(min_size=1, max_size=200))
def test_compression_loses_nothing(content: bytes) -> None:
    row = np.frombuffer(content, np.uint8)
    out = np.zeros_like(row)
    decompress(compress(row), out)
    np.testing.assert_array_equal(out, row)


@given(st.integers(0, 10_000))
def test_a_flipped_bit_is_found(bit: int) -> None:
    row = np.random.default_rng(0).integers(0, 256, 500, np.uint8)
    chunk = bytearray(compress(row))
    chunk[bit // 8 % len(chunk)] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="its checksum differs"):
        decompress(bytes(chunk), np.zeros_like(row))


@settings(max_examples=20)
@given(ROW_LISTS)
def test_compressed_rows_are_what_zarr_python_reads(finished: Path, rows: list[int]) -> None:
    path = finished / "features/x" / COMPRESSED.name
    source = open_rows(path)
    assert type(source) is CompressedRows
    with unwarned():
        expected = zarr.open_array(path, mode="r").oindex[np.array(rows, np.int64)]
    np.testing.assert_array_equal(read(source, rows), expected)


def test_several_arrays_are_read_as_one(finished: Path) -> None:
    rows = Cache(finished).column("features/x").rows(SHARDED.name)
    joined, numbers = JoinedRows([rows, rows, rows]), [40, 3, 2, 62, 0, 21]
    np.testing.assert_array_equal(read(joined, numbers), read(rows, [n % 21 for n in numbers]))
    assert joined.shape == (63, *SHARDED.row_shape)
    assert len(read(joined, [])) == 0


def test_memory_holds_the_smallest_arrays_that_fit(finished: Path) -> None:
    reader = Cache(finished).column("features/x")
    sources = [reader.rows("tokens"), reader.rows("class_token")]
    for budget, kinds in (
        (0, [DirectRows, DirectRows]),
        (21 * DENSE.row_bytes, [DirectRows, MemoryRows]),
        (21 * (DENSE.row_bytes + SHARDED.row_bytes), [MemoryRows, MemoryRows]),
    ):
        held = hold_small(sources, budget)
        assert [type(source) for source in held] == kinds
        np.testing.assert_array_equal(read(held[0], [9, 0]), values(SHARDED)[[9, 0]])
