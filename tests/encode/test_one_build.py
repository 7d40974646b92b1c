"""Builds where there can be one at a time: on a file system that does not lock files."""

import fcntl
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_cache import content
from typer.testing import CliRunner

from cache import ledger
from cache.errors import CacheBusyError
from cache.layout import LEDGER, Column
from cache.locking import file_locks, turns
from cache.locking.turn_locks import turns_beside
from cache.locking.turns import Turn
from pipeline.commands import app
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.build_options import BuildOptions, Cluster

CPU = torch.device("cpu")


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre that is mounted without flock, where a build is watched for a moment only."""
    monkeypatch.setattr(file_locks, "_sound", set())
    monkeypatch.setattr(fcntl, "flock", lambda _file, _operation: None)
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(turns, "WATCH_SECONDS", 0.1)


@pytest.mark.usefixtures("without_locks")
def test_a_build_whose_lock_was_broken_writes_no_further_shard(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny()
    path, real = config.cache.path, ledger.record
    there = Turn.mine()
    there = replace(there, process=replace(there.process, space="of another machine"))

    def record(column: Column, shard: int, images: bytes) -> None:
        real(column, shard, images)
        monkeypatch.undo()
        turns_beside(path).take(there, lambda *_: True)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "record", record)
        with pytest.raises(CacheBusyError, match="another build took over the lock of this one"):
            build(config.encode, CPU)
    assert {entry.name for entry in path.rglob(f"{LEDGER.name}/c.*")} == {"c.0.0"}


@pytest.mark.usefixtures("without_locks")
def test_the_lock_of_a_build_that_died_elsewhere_is_broken_on_request(
    tiny: Callable[..., Config],
) -> None:
    config = tiny()
    path, there = config.cache.path, Turn.mine()
    there = replace(there, process=replace(there.process, space="of another machine"))
    turns_beside(path).take(there, lambda *_: False)
    command = ["build", "--config", str(config.dataset.path.parent / "pipeline.toml")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "`repa-cache build --break-lock`" in refused.output
    assert not path.exists()
    made = CliRunner().invoke(app, [*command, "--break-lock"])
    assert made.exit_code == 0, made.output
    assert "6 shards made" in made.output


@pytest.mark.slow
def test_workers_make_shards_under_the_lock_of_their_build(
    tiny: Callable[..., Config], request: pytest.FixtureRequest
) -> None:
    alone, shared = tiny("cache.path=alone.zarr"), tiny()
    build(alone.encode, CPU)
    request.getfixturevalue("without_locks")
    made = build(shared.encode, CPU, BuildOptions(cluster=Cluster(workers=2)))
    assert made.missing == 0
    assert content(shared.cache.path) == content(alone.cache.path)
