import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cache.errors import CacheBusyError, LockError
from cache.locking import file_locks
from cache.locking.locks import build_locks, claimed

FORK = multiprocessing.get_context("fork")


def hold(path: Path, ready: Any, release: Any, *, preparing: bool) -> None:
    locks = build_locks(path, print)
    with ExitStack() as stack:
        stack.enter_context(locks.at_work())
        if preparing:
            stack.enter_context(locks.preparing(print))
        else:
            assert stack.enter_context(locks.shard(3)) is None
        ready.set()
        release.wait(60)


class Other:
    """Another process that builds the same cache."""

    def __init__(self, path: Path, *, preparing: bool = False) -> None:
        self.release, ready = FORK.Event(), FORK.Event()
        self.process = FORK.Process(
            target=hold, args=(path, ready, self.release), kwargs={"preparing": preparing}
        )
        self.process.start()
        assert ready.wait(60)
        self.pid = self.process.pid

    def end(self) -> None:
        self.release.set()
        self.process.join()

    def die(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zarr"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    process = Other(path)
    yield process
    process.end()


def test_a_shard_that_another_process_makes_is_not_claimed_and_its_maker_is_named(
    path: Path, other: Other
) -> None:
    locks = build_locks(path, print)
    with locks.at_work():
        with locks.shard(3) as holder:
            assert holder is not None
            assert (holder.pid, holder.host) == (other.pid, socket.gethostname())
        with locks.shard(4) as holder:
            assert holder is None
        other.end()
        with locks.shard(3) as holder:
            assert holder is None


def test_whoever_needs_the_cache_alone_is_refused_with_the_holder_named(
    path: Path, other: Other
) -> None:
    locks = build_locks(path, print)
    with locks.at_work(), locks.preparing(print):
        with pytest.raises(CacheBusyError) as error:
            locks.require_alone("rebuilding")
        said = rf"process {other.pid} on {re.escape(socket.gethostname())}, since 20\d\d-"
        assert re.search(said, str(error.value))
        assert "or stop it, and run this again" in str(error.value)
        other.end()
        locks.require_alone("rebuilding")


def test_the_locks_of_a_killed_process_are_free(path: Path) -> None:
    other = Other(path)
    other.die()
    locks = build_locks(path, print)
    with locks.at_work(), locks.preparing(print):
        locks.require_alone("rebuilding")
        with locks.shard(3) as holder:
            assert holder is None
    assert list(path.parent.iterdir()) == []


def test_only_one_process_prepares_and_the_next_is_told_for_whom_it_waits(path: Path) -> None:
    other = Other(path, preparing=True)
    said: list[str] = []

    def waiting(text: str) -> None:
        said.append(text)
        other.release.set()

    locks = build_locks(path, print)
    with locks.at_work(), locks.preparing(waiting):
        (text,) = said
        assert text.startswith(f"waiting for process {other.pid} on ")
        assert text.endswith(f", which prepares {path}")
    other.end()


def test_nothing_remains_of_locks_that_were_released(path: Path) -> None:
    locks = build_locks(path, print)
    with locks.at_work(), locks.preparing(print), locks.shard(0), locks.shard(1):
        assert len(list(path.with_name(".x.zarr.locks").iterdir())) == 4
    assert list(path.parent.iterdir()) == []


def granted_to_everybody(_file: object, _operation: int) -> None:
    """As on Lustre that is mounted without flock."""


def unknown_to_the_system(_file: object, _operation: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("flock", [granted_to_everybody, unknown_to_the_system])
def test_where_the_system_locks_no_files_others_take_their_place_which_is_said_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, flock: Any
) -> None:
    monkeypatch.setattr(file_locks, "_sound", set())
    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with build_locks(path, said.append).at_work():
        with pytest.raises(CacheBusyError, match="only one build can be at work at a time"):
            build_locks(path, said.append).at_work().__enter__()
        (text,) = said
        assert text.startswith(f"{path.parent}/.x.zarr.locks: the file system does not lock files")
        assert text.endswith("lock files with signs of life take their place: one build at a time")
    with build_locks(path, said.append).at_work():
        pass
    assert [entry.name for entry in path.parent.iterdir()] == [".x.zarr.turns"]
    with claimed(path.parent / "run.lock") as holder:
        assert holder is None
        with claimed(path.parent / "run.lock") as other:
            assert other is not None
            assert re.search(rf"process {os.getpid()} on .*if it died, remove .*run", str(other))
    with claimed(path.parent / "run.lock") as holder:
        assert holder is None


def test_workers_refuse_locks_that_keep_nobody_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = build_locks(path, print).for_workers()
    monkeypatch.setattr(file_locks, "_sound", set())
    monkeypatch.setattr(fcntl, "flock", granted_to_everybody)
    expected = r"does not lock files: .*Lustre: with the option flock.*another file system\."
    with pytest.raises(LockError, match=expected), locks.shard(0):
        pass


def test_a_lock_is_tried_once_on_each_file_system(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    real = fcntl.flock

    def counted(file: Any, operation: int) -> None:
        tried.append(operation)
        real(file, operation)

    monkeypatch.setattr(file_locks, "_sound", set())
    monkeypatch.setattr(fcntl, "flock", counted)
    locks = build_locks(path, print)
    with locks.at_work(), locks.shard(0), locks.shard(1):
        pass
    assert tried.count(fcntl.LOCK_SH | fcntl.LOCK_NB) == 1
