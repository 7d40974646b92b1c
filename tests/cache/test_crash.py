"""Builds that are killed at every possible moment come out as if they had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import ROOT, TOOLS
from tiny_cache import ROWS_PER_SHARD, SEED, content, fill, make_column, make_rows

from cache import files, ledger
from cache.changes import merged
from cache.locking.locks import build_locks
from cache.metadata import has_column, read_column, resize_column
from cache.rows import create_cache, read_rows, write_rows
from cache.writer import ShardWriter
from stages.encode.building.cache_setup import tidy


@dataclass(frozen=True)
class Attempt:
    """One build: before, after: files of the finished shards; content: of a whole cache."""

    survived: bool
    before: dict[str, Any]
    after: dict[str, Any]
    content: dict[str, str]


def under_fire(config: Path, *arguments: str) -> list[Attempt]:
    done = subprocess.run(
        [sys.executable, TOOLS / "under_fire.py", config, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return [Attempt(**json.loads(line)) for line in done.stdout.splitlines() if line[:1] == "{"]


def check(attempts: list[Attempt], undisturbed: Attempt) -> None:
    for attempt in attempts:
        if attempt.survived:
            assert attempt.content == undisturbed.content
        for shard, made in attempt.before.items():
            assert attempt.after[shard] == made, f"shard {shard} was made again"


@pytest.mark.slow
@pytest.mark.parametrize(("made", "expected"), [("tiny", 14), ("captioned", 18)])
def test_a_build_killed_at_every_shard_boundary_never_makes_a_shard_twice(
    made: str, expected: int, images: Path, request: pytest.FixtureRequest
) -> None:
    config, path = images.parent / "pipeline.toml", request.getfixturevalue(made)().cache.path
    (undisturbed,) = under_fire(config, "random", "0")
    shutil.rmtree(path)
    attempts = under_fire(config, "boundary")
    shards = len(attempts[-1].after)
    assert shards == expected
    assert [len(attempt.after) for attempt in attempts] == [*range(1, shards + 1), shards]
    check(attempts, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("made", ["tiny", "captioned"])
def test_a_build_killed_at_random_moments_comes_out_the_same(
    made: str, images: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(made)()
    kills = 50
    undisturbed, *attempts = under_fire(images.parent / "pipeline.toml", "random", str(kills))
    assert sum(not attempt.survived for attempt in attempts) == kills
    assert attempts[-1].survived
    check(attempts, undisturbed)


def lay_down(path: Path) -> None:
    """All that a build writes, without networks: a cache of 21 rows, then 9 added ones."""
    locks = build_locks(path, print)
    with locks.at_work(), locks.preparing(print):
        tidy(path)
        for count in (21, 30):
            rows = make_rows(count)
            if not path.exists():
                create_cache(path, rows, ROWS_PER_SHARD, SEED)
            elif len(read_rows(path)) < count:
                write_rows(path, merged(read_rows(path), rows, SEED))
            rows = read_rows(path)
            if not has_column(path, "features/x"):
                make_column(path, rows=len(rows))
            column = read_column(path, "features/x", len(rows))
            resize_column(column)
            for shard in ledger.missing(column, rows):
                with locks.shard(shard):
                    fill(column, shard, rows)


def die_at(number: int) -> None:
    """Make this process kill itself before its so many-th step on the way to the disk."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            count()
            return real(*arguments, **options)

        return step

    os.fsync = counted(os.fsync)
    files.sync = counted(files.sync)
    for place, names in {
        Path: ("rename", "unlink", "mkdir", "open"),
        ShardWriter: ("write",),
    }.items():
        for name in names:
            setattr(place, name, counted(getattr(place, name)))


def killed_at(number: int, path: Path) -> bool:
    child = os.fork()
    if child == 0:
        die_at(number)
        lay_down(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 83])
def test_a_build_killed_at_any_stage_of_writing_comes_out_the_same(
    tmp_path: Path, stride: int
) -> None:
    lay_down(tmp_path / "whole.zarr")
    whole = content(tmp_path / "whole.zarr")
    number, path = 1, tmp_path / "x.zarr"
    while killed_at(number, path):
        lay_down(path)
        assert content(path) == whole, number
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["whole.zarr", "x.zarr"]
        shutil.rmtree(path)
        number += stride
    assert number > 500
