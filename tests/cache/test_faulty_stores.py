"""Reading from a store that fails: what is read is what was written, or an error says why not."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from faulty_proxy import FAULTS, Proxy, be_hasty, proxied
from marking import few_fast
from object_store import upload
from tiny_cache import ARRAYS, ROWS, make_cache, values

from cache.reader import Cache
from cache.stores import object_rows
from cache.stores.places import StorePath
from cache.stores.requests import StoreError

BUSY_SECONDS = 1


@pytest.fixture(scope="module")
def place(bucket: StorePath, tmp_path_factory: pytest.TempPathFactory) -> StorePath:
    """A tiny cache in a store."""
    folder = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(folder)
    return upload(folder, bucket / "faulty" / "x.zarr")


@pytest.fixture
def proxy(place: StorePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: ARG001
    """Everything goes through it, with less patience than usual."""
    be_hasty(monkeypatch, BUSY_SECONDS)
    with proxied() as proxy:
        yield proxy


def rows_read(place: StorePath, rows: np.ndarray) -> None:
    reader = Cache(place).column("features/x", verify=True)
    for array in ARRAYS[:-1]:
        np.testing.assert_array_equal(reader.read(array.name, rows), values(array)[rows])


@pytest.mark.parametrize("fault", few_fast(FAULTS))
def test_rows_are_those_that_were_written_whatever_fails_now_and_then(
    place: StorePath, proxy: Proxy, fault: str
) -> None:
    proxy.fault = fault
    rows_read(place, np.random.default_rng(0).integers(0, ROWS, 40))


@pytest.mark.parametrize("fault", few_fast(["silent", "reset", "cut", "503", "429"]))
def test_what_never_ends_is_an_error_with_the_address_in_time(
    place: StorePath, proxy: Proxy, fault: str
) -> None:
    reader = Cache(place).column("features/x", verify=True)
    proxy.fault, proxy.every = fault, 1
    start = time.monotonic()
    with pytest.raises(StoreError, match=f"{place}/features/x/tokens/c") as error:
        reader.read("tokens", np.arange(ROWS))
    assert time.monotonic() - start < 20 * BUSY_SECONDS
    assert error.value.what


def test_neighbours_are_asked_for_together(place: StorePath, proxy: Proxy) -> None:
    reader = Cache(place).column("features/x")
    reader.read("tokens", [0, 8, 16])
    proxy.paths.clear()
    rows = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_array_equal(reader.read("tokens", rows), values(ARRAYS[0])[rows])
    assert len(proxy.paths) == 3


def test_rows_that_are_far_apart_are_asked_for_one_by_one(
    place: StorePath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_rows, "GAP_BYTES", 0)
    monkeypatch.setattr(object_rows, "RANGE_BYTES", 2 * ARRAYS[0].row_bytes)
    reader = Cache(place).column("features/x")
    reader.read("tokens", [0, 8, 16])
    proxy.paths.clear()
    rows = np.array([5, 0, 1, 2, 7, 7, 3])
    np.testing.assert_array_equal(reader.read("tokens", rows), values(ARRAYS[0])[rows])
    # Two of the four that lie together at a time.
    assert len(proxy.paths) == 4
