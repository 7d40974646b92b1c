from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_cache import ROWS, make_cache

from cache.reader import Cache, ColumnReader
from stages.analyze.neighbours import PART_BYTES, find_nearest

ALL = np.arange(ROWS)


def brute_force(
    vectors: npt.NDArray[np.float32], rows: list[int], among: list[int], count: int
) -> list[list[int]]:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return [
        sorted((r for r in among if r != row), key=lambda r: -cosines[row, r])[:count]
        for row in rows
    ]


@pytest.fixture
def with_class_tokens(tmp_path: Path) -> ColumnReader:
    make_cache(tmp_path / "x.zarr")
    return Cache(tmp_path / "x.zarr").column("features/x")


@pytest.fixture
def with_tokens_alone(built: Path) -> ColumnReader:
    return Cache(built / "tiny.zarr").column("features/efficientnet-lite0")


@pytest.mark.parametrize("part_bytes", [1, 20_000, PART_BYTES])
@pytest.mark.parametrize("name", ["with_class_tokens", "with_tokens_alone"])
def test_the_nearest_are_those_of_brute_force_however_the_rows_are_cut(
    name: str, part_bytes: int, request: pytest.FixtureRequest
) -> None:
    reader: ColumnReader = request.getfixturevalue(name)
    assert reader.has_class_token == (name == "with_class_tokens")
    rows = [3, 0, 20]
    found = find_nearest(reader, np.array(rows), ALL, 4, part_bytes)
    expected = brute_force(reader.vectors(ALL), rows, ALL.tolist(), 4)
    assert [[near.row for near in some] for some in found] == expected
    for some in found:
        similarities = [near.similarity for near in some]
        assert similarities == sorted(similarities, reverse=True)


def test_only_the_rows_that_are_given_are_looked_at(with_class_tokens: ColumnReader) -> None:
    among = np.array([1, 4, 5, 9])
    (found,) = find_nearest(with_class_tokens, np.array([4]), among, 8)
    vectors = with_class_tokens.vectors(ALL)
    assert [near.row for near in found] == brute_force(vectors, [4], among.tolist(), 8)[0]
    assert len(found) == 3


def test_of_equal_images_the_first_rows_come_first(
    with_class_tokens: ColumnReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = np.ones((ROWS, 130), np.float32)
    monkeypatch.setattr(
        ColumnReader, "vectors", lambda _self, rows: alike[: len(np.atleast_1d(rows))]
    )
    for part_bytes in (1, PART_BYTES):
        (found,) = find_nearest(with_class_tokens, np.array([2]), ALL, 3, part_bytes)
        assert [near.row for near in found] == [0, 1, 3]
