"""Whole shards of a cache in a store, kept on a local disk."""

import gc
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import Proxy, proxied
from keeping import IN_ORDER, NAMES, SHARDS, expect, kept, opened, read_all, share, until
from object_store import upload
from tiny_cache import ARRAYS, COMPRESSED, ROWS, ROWS_PER_SHARD, fill, make_cache, make_rows, values

from cache.errors import CacheReadError
from cache.metadata import read_column
from cache.stores import local_shards
from cache.stores.local_shards import LocalShards
from cache.stores.places import StorePath


@pytest.fixture
def place(bucket: StorePath, tmp_path: Path, request: pytest.FixtureRequest) -> StorePath:
    """A tiny cache in a store."""
    make_cache(tmp_path / "x.zarr")
    return upload(tmp_path / "x.zarr", bucket / "kept" / request.node.name / "x.zarr")


@pytest.fixture
def proxy(place: StorePath) -> Iterator[Proxy]:  # noqa: ARG001
    with proxied() as proxy:
        yield proxy


def test_once_they_are_kept_the_store_is_asked_for_nothing(
    place: StorePath, proxy: Proxy, tmp_path: Path
) -> None:
    folder = tmp_path / "local"
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    read_all(reader)
    until(lambda: len(kept(folder)) == SHARDS * len(NAMES))
    # Whoever comes later finds them there; of the store, only what describes the cache is read.
    reader = opened(place, LocalShards(folder))
    proxy.paths.clear()
    expect(reader, IN_ORDER)
    read_all(reader)
    assert proxy.paths == []
    assert not list(folder.glob("*.partial"))


def test_a_file_that_was_damaged_is_noticed_and_fetched_again(
    place: StorePath, proxy: Proxy, tmp_path: Path
) -> None:
    folder = tmp_path / "local"
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    until(lambda: len(kept(folder)) == SHARDS * len(NAMES))
    before = {path: path.read_bytes() for path in kept(folder)}
    for path, content in before.items():
        path.write_bytes(content[:40] + bytes(40) + content[80:])
    proxy.paths.clear()
    read_all(reader)
    assert proxy.paths
    expect(reader, IN_ORDER)
    until(lambda: {path: path.read_bytes() for path in kept(folder)} == before)
    # Ends and indexes too, before anything is read.
    for path, content in before.items():
        path.write_bytes(content[: len(content) // 2])
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    read_all(reader)
    expect(reader, IN_ORDER)
    until(lambda: {path: path.read_bytes() for path in kept(folder)} == before)


def test_a_shard_that_was_made_anew_in_the_store_is_not_taken_from_the_disk(
    place: StorePath, tmp_path: Path
) -> None:
    folder = tmp_path / "local"
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    until(lambda: len(kept(folder)) == SHARDS * len(NAMES))
    column = read_column(place, "features/x", ROWS)
    for shard in range(SHARDS):
        fill(column, shard, make_rows(), factor=2)
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER)
    read_all(reader, factor=2)


def test_those_not_used_for_longest_make_room_for_what_is_needed_next(
    place: StorePath, tmp_path: Path
) -> None:
    folder, name = tmp_path / "local", ARRAYS[0].name
    most = int(2.5 * ROWS_PER_SHARD * ARRAYS[0].row_bytes)
    reader = opened(place, LocalShards(folder, most))
    held = []
    for shard in (0, 1, 2, 0):
        rows = IN_ORDER[shard * ROWS_PER_SHARD : (shard + 1) * ROWS_PER_SHARD]
        expect(reader, rows, [name])
        until(lambda s=shard: s in reader.rows(name)._source._kept)
        np.testing.assert_array_equal(reader.read(name, rows), values(ARRAYS[0])[rows])
        held.append([path.name for path in kept(folder)])
        assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    first, both, then, again = map(set, held)
    assert first < both
    assert first.isdisjoint(then)
    assert both.isdisjoint(again - first)
    # Of a full shuffle few rows of each are needed: nothing is worth the room of another.
    expect(reader, np.array([0, 8, 16]), [name])
    read_all(reader, [name])
    time.sleep(0.2)
    assert {path.name for path in kept(folder)} == again


def test_a_folder_is_brought_under_a_bound_that_was_lowered(
    place: StorePath, tmp_path: Path
) -> None:
    folder, name = tmp_path / "local", ARRAYS[0].name
    reader = opened(place, LocalShards(folder))
    expect(reader, IN_ORDER, [name])
    until(lambda: len(kept(folder)) == 3)
    del reader
    # They are in use until then.
    gc.collect()
    size = ROWS_PER_SHARD * ARRAYS[0].row_bytes
    LocalShards(folder, int(1.5 * size))
    assert len(kept(folder)) == 1


def test_a_shard_that_is_read_is_not_removed(place: StorePath, tmp_path: Path) -> None:
    folder, name = tmp_path / "local", ARRAYS[0].name
    most = int(1.5 * ROWS_PER_SHARD * ARRAYS[0].row_bytes)
    reader, other = (opened(place, LocalShards(folder, most)) for _ in range(2))
    expect(reader, IN_ORDER[:8], [name])
    until(lambda: bool(reader.rows(name)._source._kept))
    before = kept(folder)
    expect(other, IN_ORDER[8:16], [name])
    until(lambda: not other.rows(name)._source._local._threads)
    assert kept(folder) == before
    read_all(other, [name])


def test_a_full_disk_is_said_once_and_rows_come_from_the_store(
    place: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local_shards, "_allocate", allocate)
    said: list[str] = []
    reader = opened(place, local := LocalShards(tmp_path / "local", say=said.append))
    for _ in range(2):
        expect(reader, IN_ORDER)
        until(lambda: not local._threads)
        read_all(reader)
    (line,) = said
    assert "local: no more shards are kept (No space left on device)" in line
    assert kept(tmp_path / "local") == []


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheReadError, match=r"file/x: no shards can be kept there: Not a"):
        LocalShards(tmp_path / "file" / "x")


def test_processes_share_them_and_each_is_fetched_once(
    place: StorePath, proxy: Proxy, tmp_path: Path
) -> None:
    proxy.fault, proxy.every = "delay", 1
    context, folder = multiprocessing.get_context("spawn"), tmp_path / "local"
    processes = [context.Process(target=share, args=(place, folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    fetched = [path for path in proxy.whole if "/c." in path and "crc32c" not in path]
    assert len(fetched) == len(set(fetched)) == len(kept(folder)) == SHARDS * len(NAMES)


def test_what_a_killed_process_left_is_taken_over(place: StorePath, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    reader = opened(place, LocalShards(folder))
    names = reader.rows(COMPRESSED.name)._source._source._identity.names
    for name in names.values():
        (folder / f".{name}.partial").write_bytes(bytes(100))
    expect(reader, IN_ORDER)
    until(lambda: len(kept(folder)) == SHARDS * len(NAMES))
    assert not list(folder.glob(".*.partial"))
    read_all(reader)
