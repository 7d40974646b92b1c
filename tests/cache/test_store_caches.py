"""Caches in an object store: written and read as those on a disk, byte for byte."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_store import upload
from tiny_cache import files_in

from cache import ledger
from cache.errors import DamagedCacheError, IncompleteCacheError, NotACacheError
from cache.files import atomic_file, of_one_version, recover, remove_folder, standing
from cache.metadata import column_names, create_column, has_column, read_column
from cache.reader import Cache, PartialReader
from cache.rows import read_rows, write_rows
from cache.stores import files as store_files
from cache.stores.places import StorePath
from cache.verify import find_all_faults
from cache.writer import ShardWriter

TOKENS = "features/efficientnet-lite0"


@pytest.fixture
def there(built: Path, bucket: StorePath, request: pytest.FixtureRequest) -> Iterator[StorePath]:
    """The tiny cache in a store."""
    name = request.node.name.replace("[", "-").replace("]", "")
    place = upload(built / "tiny.zarr", bucket / "caches" / name / "tiny.zarr")
    yield place
    place.parent.remove_tree()


def test_what_is_read_is_what_is_read_from_a_disk(built: Path, there: StorePath) -> None:
    here, far = Cache(built / "tiny.zarr"), Cache(there)
    assert far.states() == here.states()
    assert far.rows.equals(here.rows)
    rows = np.random.default_rng(0).integers(0, len(here.rows), 40)
    for name in column_names(built / "tiny.zarr"):
        one, other = far.column(name, verify=True), here.column(name)
        assert one.column.recipe == other.column.recipe
        assert np.array_equal(one.valid, other.valid)
        for array in one.column.arrays:
            read, expected = one.read(array.name, rows), other.read(array.name, rows)
            assert read.tobytes() == expected.tobytes()
            assert one.read(array.name, range(21)).tobytes() == (
                other.read(array.name, range(21)).tobytes()
            )
        part = PartialReader(one.column).read(np.array([20, 0]))
        assert all(part[a.name].shape == (2, *a.row_shape) for a in one.column.arrays)


def test_what_is_not_there_is_said_with_its_address(there: StorePath) -> None:
    with pytest.raises(NotACacheError, match=f"There is no cache at {there}2"):
        Cache(there.with_name("tiny.zarr2"))
    with pytest.raises(IncompleteCacheError, match="no column features/other"):
        Cache(there).column("features/other")


def _flip(place: StorePath) -> None:
    content = bytearray(place.read_bytes())
    content[99] ^= 1
    place.put(bytes(content))


def _shorten(place: StorePath) -> None:
    place.put(place.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [_flip, _shorten, StorePath.unlink])
def test_damage_is_found_and_never_read(there: StorePath, harm: Callable[..., Any]) -> None:
    assert find_all_faults(there, 2) == []
    column = Cache(there).column(TOKENS, verify=True).column
    harm(column.shard_path(column.arrays[0], 1))
    assert {(one.column, one.shard) for one in find_all_faults(there, 2)} == {(TOKENS, 1)}
    reader = Cache(there).column(TOKENS, verify=True)
    with pytest.raises((DamagedCacheError, IncompleteCacheError), match=str(there)):
        reader.read("tokens", range(21))


def test_a_shard_is_written_as_on_a_disk_and_there_at_its_end(
    built: Path, there: StorePath
) -> None:
    rows, local = read_rows(there), files_in(built / "tiny.zarr" / TOKENS)
    column = read_column(there, TOKENS, len(rows))
    span = column.shard_rows(1)
    arrays = Cache(there).column(TOKENS)
    values = {array.name: arrays.read(array.name, span) for array in column.arrays}
    remove_folder(there / TOKENS)
    assert not has_column(there, TOKENS)
    create_column(column, {})
    with ShardWriter(column, 1, rows.digest(span)) as writer:
        writer.write({name: part[:3] for name, part in values.items()})
        assert not any("/c." in name for name in files_in(there / TOKENS))
        writer.write({name: part[3:] for name, part in values.items()})
    assert ledger.missing(column, rows) == [0, 2]
    written = {n: c for n, c in files_in(there / TOKENS).items() if not n.endswith("zarr.json")}
    assert written == {name: local[name] for name in written}
    assert {name for name in local if "/c.1." in name or name.endswith("/c.1")} == set(written)


def test_a_file_that_is_not_finished_leaves_nothing(there: StorePath) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(there / "x") as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert not (there / "x").exists()


class Stopped(BaseException):
    """As if the process had been killed."""


def interrupted_after(requests: int, patch: pytest.MonkeyPatch) -> None:
    """Let a process die when it has changed a store so many times."""
    left = requests

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Stopped
            left -= 1
            return real(*arguments, **options)

        return ask

    for name in ("put", "copy_to", "unlink", "remove_tree"):
        patch.setattr(StorePath, name, counted(getattr(StorePath, name)))
    patch.setattr(store_files, "for_each", lambda work, items: [work(item) for item in items])


def test_a_row_table_is_the_old_or_the_new_one_wherever_its_replacing_stops(
    there: StorePath, tmp_path: Path, built: Path
) -> None:
    old = read_rows(there)
    new = old.permuted(7)
    shutil.copytree(built / "tiny.zarr", tmp_path / "x.zarr")
    write_rows(tmp_path / "x.zarr", new)
    seen = set()
    for requests in range(200):
        with pytest.MonkeyPatch.context() as patch:
            interrupted_after(requests, patch)
            try:
                write_rows(there, new)
                stopped = False
            except Stopped:
                stopped = True
        found = read_rows(there)
        assert found.equals(old) or found.equals(new)
        seen.add(found.equals(new))
        recover(there / "rows")
        assert read_rows(there).equals(found)
        assert standing(there / "rows") == there / "rows"
        assert not [one for one in there.tree() if "/.rows" in str(one)]
        if not stopped:
            break
        if found.equals(new):
            assert files_in(there / "rows") == files_in(tmp_path / "x.zarr" / "rows")
            (there / "rows").remove_tree()
            upload(built / "tiny.zarr" / "rows", there / "rows")
    assert not stopped
    assert seen == {True, False}


def test_a_reader_meets_no_mixture_while_a_table_is_replaced(there: StorePath) -> None:
    old, calls = read_rows(there), 0

    def read() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            write_rows(there, old.permuted(3))
        return read_rows(there).equals(old)

    assert of_one_version(read, there / "rows") is False
    assert calls == 2


def test_a_column_that_was_not_laid_out_to_the_end_is_none(
    there: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = read_column(there, TOKENS, 21)
    remove_folder(there / TOKENS)
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        with pytest.raises(Stopped):
            create_column(column, {})
    assert not has_column(there, TOKENS)
    assert TOKENS not in column_names(there)
    create_column(column, {})
    assert has_column(there, TOKENS)
