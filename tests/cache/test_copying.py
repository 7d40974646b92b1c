"""Copies of caches: byte for byte the original, or not there."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from copies import contents, finish, grow, made_column, make_whole
from places import ROOT, TOOLS
from tiny_cache import ARRAYS, fill, make_column
from web_server import served

from cache import ledger
from cache.copies.copying import copy_cache, preview
from cache.errors import CopyError, DamagedCacheError, IncompleteCacheError, NotACacheError
from cache.metadata import UNFINISHED, column_names, has_column, root_attributes, update_group
from cache.reader import Cache
from cache.rows import read_rows, write_rows
from cache.stores.places import Place, StorePath
from cache.verify import find_all_faults

SHARD = "features/x/tokens/c.1.0.0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole cache; not to be written to."""
    path = tmp_path_factory.mktemp("original") / "x.zarr"
    make_whole(path)
    return path


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """The same to be changed."""
    return Path(shutil.copytree(original, tmp_path / "source.zarr"))


@pytest.fixture(params=["disk", "store"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where to, on a disk or in a store."""
    if request.param == "disk":
        yield tmp_path / "there" / "target.zarr"
        return
    bucket: StorePath = request.getfixturevalue("bucket")
    place = bucket / "copies" / tmp_path.name / "target.zarr"
    yield place
    place.parent.remove_tree()


def test_a_copy_of_a_copy_in_a_store_is_the_original_byte_for_byte(
    original: Path, bucket: StorePath, tmp_path: Path
) -> None:
    one, two = (bucket / "copies" / name / "x.zarr" for name in "ab")
    for here, there in ((original, one), (one, two), (two, tmp_path / "y.zarr")):
        done = copy_cache(here, there)
        assert {column.name for column in done} == {
            *("features/x", "features/codes", "features/x.flipped", "captions/features/t")
        }
        assert all(column.copied == column.shards for column in done)
        assert contents(there) == contents(original)
        # No lock is left beside it, and nothing else.
        assert [place.name for place in there.parent.iterdir() if "locks" in place.name] == []
    assert find_all_faults(tmp_path / "y.zarr", 1) == []


def test_a_second_copy_writes_nothing(
    original: Path, target: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(column.copied for column in preview(original, target))
    assert not target.exists()
    copy_cache(original, target)
    for name in ("shard_copies.put_in_place", "copying.write_atomically", "copying.atomic_folder"):
        monkeypatch.setattr(f"cache.copies.{name}", None)
    assert {column.copied for column in copy_cache(original, target)} == {0}
    assert contents(target) == contents(original)


def test_columns_that_are_named_are_copied_and_others_later(original: Path, target: Place) -> None:
    copy_cache(original, target, ["codes"])
    assert column_names(target) == ["features/codes"]
    assert not has_column(target / "captions", "features/t")
    assert Cache(target).column("features/codes", verify=True).column.constants
    done = copy_cache(original, target, ["x", "captions/features/t"])
    # With its mirrored images.
    assert {one.name for one in done} == {"features/x", "features/x.flipped", "captions/features/t"}
    assert contents(target) == contents(original)
    with pytest.raises(IncompleteCacheError, match="no column z"):
        copy_cache(original, target, ["z"])


def test_of_a_cache_with_another_encoder_that_alone_is_copied(source: Path, target: Place) -> None:
    copy_cache(source, target)
    rows = read_rows(source)
    finish(made_column(source, "features/new", ARRAYS, {}, rows), rows)
    done = copy_cache(source, target)
    assert {one.name: one.copied for one in done if one.copied} == {"features/new": 3}
    assert contents(target) == contents(source)


def test_a_copy_of_a_cache_that_grew_is_brought_up_to_date(
    source: Path, target: Place, original: Path
) -> None:
    copy_cache(source, target)
    opened = Cache(target)
    reader = opened.column("features/x", verify=True)
    grow(source)
    done = copy_cache(source, target)
    assert {one.name: one.copied for one in done} == {
        **dict.fromkeys(["features/x", "features/x.flipped", "features/codes"], 2),
        "captions/features/t": 7,
    }
    assert contents(target) == contents(source)
    # Whoever had it open reads what was there.
    assert len(opened.column("features/x").read("tokens", range(21))) == 21
    assert len(reader.read("tokens", [0])) == 1
    with pytest.raises(CopyError, match="9 rows more than"):
        copy_cache(original, target)
    assert contents(target) == contents(source)


def test_finished_shards_of_a_build_are_copied_and_the_others_named(
    source: Path, target: Place
) -> None:
    rows = read_rows(source)
    column = make_column(source, "features/z")
    fill(column, 1, rows)
    (done,) = (one for one in copy_cache(source, target) if one.name == "features/z")
    assert (done.copied, done.unfinished) == (1, 2)
    with pytest.raises(IncompleteCacheError, match="2 of 3 shards are missing"):
        Cache(target).column("features/z")
    finish(column, rows)
    (done,) = (one for one in copy_cache(source, target) if one.name == "features/z")
    assert (done.copied, done.unfinished) == (2, 0)
    assert contents(target) == contents(source)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[99] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_is_named_and_nothing_becomes_visible(
    source: Path, target: Place, harm: Callable[[Path], object], original: Path
) -> None:
    harm(source / SHARD)
    with pytest.raises(DamagedCacheError, match=r"features/x\S* shard 1: .*Run .*--repair"):
        copy_cache(source, target)
    with pytest.raises(NotACacheError, match=r"beginning of a copy.*Run the same"):
        root_attributes(target)
    assert (target / UNFINISHED).is_file()
    shutil.copy(original / SHARD, source / SHARD)
    # All others are there already.
    assert sum(one.copied for one in copy_cache(source, target)) == 1
    assert contents(target) == contents(original)


def test_a_shard_that_is_damaged_takes_no_sound_one_away(source: Path, target: Place) -> None:
    copy_cache(source, target)
    before = contents(target)
    grow(source)
    # That of the last rows, which is there with fewer.
    _flip(source / "features/x/tokens/c.2.0.0")
    with pytest.raises(DamagedCacheError, match="features/x/tokens shard 2"):
        copy_cache(source, target)
    assert Cache(target).column("features/x", verify=True).column.rows == 21
    assert before.items() <= contents(target).items()


def _other_rows(path: Path) -> None:
    write_rows(path, read_rows(path).permuted(3))


def _other_recipe(path: Path) -> None:
    shutil.rmtree(path / "features/x")
    make_column(path, model="another")


def _other_layout(path: Path) -> None:
    update_group(path, {"rows_per_shard": 4})


def _no_cache(path: Path) -> None:
    (path / "zarr.json").unlink()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_other_rows, "its rows are not those of"),
        (_other_recipe, r"features/x: another recipe made it \(others are: model"),
        (_other_layout, "rows_per_shard: 4 instead of 8"),
        (_no_cache, "something is there that is no cache"),
    ],
)
def test_what_is_something_else_is_refused_and_left_as_it_is(
    source: Path, original: Path, change: Callable[[Path], None], what: str
) -> None:
    change(source)
    before = contents(source)
    with pytest.raises(CopyError, match=what):
        copy_cache(original, source)
    assert contents(source) == before
    assert [place.name for place in source.parent.iterdir()] == ["source.zarr"]


def test_objects_of_somebody_else_are_left_alone(original: Path, bucket: StorePath) -> None:
    (bucket / "copies/mine/notes.txt").put(b"mine")
    with pytest.raises(CopyError, match="something is there that is no cache"):
        copy_cache(original, bucket / "copies/mine")
    assert contents(bucket / "copies/mine") == {"notes.txt": b"mine"}


def test_what_was_left_of_a_copy_of_another_column_does_not_count(
    source: Path, target: Place, tmp_path: Path
) -> None:
    rows, other = read_rows(source), Path(shutil.copytree(source, tmp_path / "other.zarr"))
    shutil.rmtree(other / "features/x")
    finish(make_column(other, model="other"), rows)
    _flip(other / SHARD)
    with pytest.raises(DamagedCacheError):
        copy_cache(other, target, ["features/x"])
    # Of this one the same images are there, of another recipe.
    ledger.strike(Cache(source).column("features/x").column, 0)
    copy_cache(source, target, ["features/x"])
    assert Cache(target).states()["features/x"] == "float16, 2 of 3 shards"
    assert contents(target / "features/x").items() <= contents(source / "features/x").items()


@pytest.fixture
def address(original: Path) -> Iterator[StorePath]:
    with served(original.parent) as address:
        yield StorePath(f"{address}/x.zarr")


def test_columns_are_copied_from_a_web_server_which_lists_nothing(
    address: StorePath, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(CopyError, match=r"does not tell what it has\. Name columns"):
        copy_cache(address, tmp_path / "y.zarr")
    copy_cache(address, tmp_path / "y.zarr", ["x", "codes", "t"])
    assert contents(tmp_path / "y.zarr") == contents(original)
    with pytest.raises(CopyError, match="web servers take no files"):
        copy_cache(original, address.with_name("z.zarr"))


def test_a_folder_is_no_web_server_by_its_name(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_cache(original, Path("http.zarr"))
    assert contents(Path("http.zarr")) == contents(original)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "is_grown"),
    [
        (1, True),
        pytest.param(30, True, marks=pytest.mark.slow),
        pytest.param(30, False, marks=pytest.mark.slow),
    ],
)
def test_whatever_a_killed_copy_leaves_is_right_and_the_next_one_goes_on(
    source: Path, original: Path, target: Place, kills: int, *, is_grown: bool
) -> None:
    if is_grown:
        grow(source)
    attempts = under_fire(str(kills), str(target), str(source), *([str(original)] * is_grown))
    assert sum(not one["survived"] for one in attempts) == kills
    assert attempts[-1]["survived"]
    whole = {name: hashlib.sha256(one).hexdigest() for name, one in contents(source).items()}
    for attempt in attempts:
        assert attempt["is_cache"] or not (attempt["survived"] or is_grown)
        assert attempt["contents"] == (whole if attempt["survived"] else {})
    assert [one for one in target.parent.iterdir() if one.name.endswith(".locks")] == []


def under_fire(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, TOOLS / "copy_under_fire.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
