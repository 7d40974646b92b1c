"""Reading a cache while a build replaces parts of it: one whole version, and no false error."""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from growing import CHECKS, COLUMN, check_column, copied, grow, read, rows_of, write
from marking import few_fast
from tiny_cache import ROWS, SHARDED, fill, make_cache, make_column, make_rows, values

from cache.errors import (
    CacheReadError,
    CacheReplacedError,
    DamagedCacheError,
    IncompleteCacheError,
)
from cache.files import of_one_version, remove_folder
from cache.reader import Cache
from cache.rows import count_rows, read_rows, write_rows
from cache.verify import Remedy, check_shard, survey


class Planted:
    """Does something when the process opens a file of a cache for the so many-th time."""

    def __init__(self) -> None:
        self.folder, self.left, self.act = "", 0, lambda: None
        sys.addaudithook(self._opened)

    def _opened(self, event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not self.left or not self._is_inside(arguments[0]):
            return
        self.left -= 1
        if not self.left:
            self.act()

    def _is_inside(self, path: object) -> bool:
        # Files of columns are opened by their names in a folder that is open.
        return str(path).startswith((self.folder, "c."))

    @contextmanager
    def at(self, number: int, folder: Path, act: Callable[[], object]) -> Iterator[None]:
        self.folder, self.left, self.act = str(folder), number, act
        try:
            yield
        finally:
            self.left = 0


# A hook cannot be taken away again.
PLANTED = Planted()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(path)
    return path


def at_every_opening(
    finished: Path, folder: Path, act: Callable[[Path], object], step: int = 1
) -> Iterator[Path]:
    """A fresh copy of a cache for each file that whoever gets it opens, where `act` comes first."""
    number, was_reached = 1, True
    while was_reached:
        path = copied(finished, folder / "x.zarr")
        done: list[Path] = []

        def act_once(path: Path = path, done: list[Path] = done) -> None:
            done.append(path)
            act(path)

        with PLANTED.at(number, path, act_once):
            yield path
        was_reached = bool(done)
        number += step
    assert number > 10


@pytest.mark.parametrize("check", few_fast(CHECKS))
def test_a_cache_that_grows_at_any_moment_is_read_as_it_was_or_is(
    finished: Path, tmp_path: Path, check: str
) -> None:
    for path in at_every_opening(finished, tmp_path, grow, step=1 if check == "rows" else 5):
        CHECKS[check](path)


def test_a_cache_that_was_open_before_it_grew_gives_its_own_rows(
    finished: Path, tmp_path: Path
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    cache = Cache(path)
    before = cache.column(COLUMN, verify=True)
    grow(path)
    for _ in range(2):
        check_column(path, opened=cache)
        np.testing.assert_array_equal(before.read("tokens", range(ROWS)), values(SHARDED))
        grow(path)
    assert len(Cache(path).rows) == ROWS + 9


def test_shards_of_images_that_changed_since_are_not_taken_for_those_that_were(
    finished: Path, tmp_path: Path
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    cache, rows = Cache(path), make_rows()
    rows.content_hash[20] += 1
    write_rows(path, rows)
    cache.column(COLUMN)
    fill(cache.column(COLUMN).column, 2, rows)
    with pytest.raises(CacheReplacedError, match=r"images or labels changed .* Start again"):
        cache.column(COLUMN)
    assert len(Cache(path).column(COLUMN).valid) == ROWS


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "going on"])
def test_a_table_is_read_between_the_two_renames_that_replace_it(
    finished: Path, tmp_path: Path, is_killed: bool
) -> None:
    aside = copied(finished, tmp_path / "grown.zarr")
    grow(aside)

    def replace(path: Path) -> None:
        rows, replaced = path / "rows", path / ".rows.replaced"
        if replaced.exists():
            shutil.copytree(aside / "rows", rows)
            # What the removal of the old table may begin with: stamps would be read as zeros.
            shutil.rmtree(replaced / "stamp/c")
            return
        rows.rename(replaced)
        if not is_killed:
            # At the next file that is opened.
            PLANTED.left, PLANTED.act = 1, lambda: replace(path)

    for path in at_every_opening(finished, tmp_path, replace, step=2):
        assert count_rows(path) in {ROWS, ROWS + 3}
        rows = read_rows(path)
        assert rows.equals(rows_of(len(rows)))


def rebuild(path: Path) -> None:
    """The column by another recipe, with other numbers, as `--rebuild` makes it."""
    remove_folder(path / COLUMN)
    column = make_column(path, model="another")
    for shard in range(column.shards):
        fill(column, shard, make_rows(), factor=2)


@pytest.mark.slow
def test_a_column_that_is_rebuilt_at_any_moment_is_read_as_it_was_or_is(
    finished: Path, tmp_path: Path
) -> None:
    seen = set()
    for path in at_every_opening(finished, tmp_path, rebuild, step=3):
        try:
            reader = Cache(path).column(COLUMN)
            stored = reader.read("tokens", range(ROWS))
        except CacheReplacedError:
            continue
        factor = 1 if reader.column.recipe["model"] == COLUMN else 2
        np.testing.assert_array_equal(stored, factor * values(SHARDED))
        seen.add(factor)
    assert seen == {1, 2}


def test_a_column_that_is_removed_at_any_moment_is_missing_and_not_damaged(
    finished: Path, tmp_path: Path
) -> None:
    for path in at_every_opening(finished, tmp_path, lambda p: remove_folder(p / COLUMN), step=3):
        with suppress(IncompleteCacheError):
            Cache(path).column(COLUMN, verify=True)


def test_a_reader_never_goes_on_with_files_of_a_rebuilt_column(
    finished: Path, tmp_path: Path
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    reader = Cache(path).column(COLUMN)
    np.testing.assert_array_equal(reader.read("tokens", [0]), values(SHARDED)[:1])
    rebuild(path)
    np.testing.assert_array_equal(reader.read("tokens", [0]), values(SHARDED)[:1])
    with pytest.raises(CacheReplacedError, match="tokens: it was made anew while it was read"):
        reader.read("tokens", [9])


def test_a_row_that_was_encoded_again_is_told_from_a_damaged_one(
    finished: Path, tmp_path: Path
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    reader = Cache(path).column(COLUMN, verify=True)
    fill(reader.column, 1, make_rows(), factor=2)
    # The ledger's seal covers the checksums, so that its entry differs.
    with pytest.raises(CacheReplacedError, match="row 9 was made anew while it was read"):
        reader.read("tokens", [9])
    file = path / COLUMN / "tokens/c.0.0.0"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(DamagedCacheError, match="row 0 is not what was written"):
        reader.read("tokens", [0])


def test_a_shard_that_is_made_anew_while_it_is_verified_is_looked_at_again(
    finished: Path, tmp_path: Path
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    shards = survey(path).shards
    grow(path)
    assert [fault for one in shards for fault in check_shard(one)] == []
    shards = survey(path).shards
    shutil.rmtree(path / COLUMN / "ledger")
    (path / COLUMN / "crc32c/c.1.0").unlink()
    (fault,) = check_shard(shards[1])
    assert (fault.what, fault.remedy) == ("it is being made anew", Remedy.BUILD)


def test_what_never_stays_the_same_is_named_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.files.PAUSE_SECONDS", 0)
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows/zarr.json"
    times = iter(range(1, 1_000_000))

    def change() -> None:
        file.touch()
        os.utime(file, ns=(next(times), next(times)))

    change()
    with pytest.raises(
        CacheReadError, match=r"rows: it was replaced 200 times .* builds .* are done"
    ):
        of_one_version(change, tmp_path / "rows")


def test_an_error_counts_that_comes_about_while_nothing_is_replaced(tmp_path: Path) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise DamagedCacheError("torn")

    with pytest.raises(DamagedCacheError, match="torn"):
        of_one_version(fail, tmp_path / "rows")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("times", "readers"), [pytest.param(100, 2, marks=pytest.mark.slow), (6, 1)]
)
def test_readers_in_other_processes_see_one_whole_cache_while_it_grows(
    finished: Path, tmp_path: Path, times: int, readers: int
) -> None:
    path = copied(finished, tmp_path / "x.zarr")
    context = multiprocessing.get_context("spawn")
    is_done, answers = context.Event(), context.Queue()
    everyone = [
        context.Process(target=read, args=(path, check, is_done, answers))
        for check in CHECKS
        for _ in range(readers)
    ]
    for process in everyone:
        process.start()
    writer = context.Process(target=write, args=(path, times, is_done))
    writer.start()
    found = [answers.get(timeout=280) for _ in everyone]
    for process in [*everyone, writer]:
        process.join()
    assert writer.exitcode == 0
    assert [answer for answer in found if not isinstance(answer, int)] == []
    assert len(Cache(path).rows) == ROWS + 3 * times
