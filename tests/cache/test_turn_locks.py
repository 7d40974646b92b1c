"""Locks in a store, and in a folder of a file system that has none of its own."""

import pickle
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import careless_store
import object_store
import pytest
from lock_holder import HolderProcess

from cache.errors import CacheBusyError, LockError
from cache.locking import turns
from cache.locking.holders import Process
from cache.locking.locks import build_locks
from cache.locking.turn_locks import TurnLocks, turns_beside
from cache.locking.turns import Turn
from cache.stores.places import Place, StorePath

ROUNDS = 30


@pytest.fixture(params=["store", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        return tmp_path / "x.zarr"
    bucket: StorePath = request.getfixturevalue("bucket")
    return bucket / uuid4().hex / "x.zarr"


@pytest.fixture
def other(path: Place) -> Iterator[HolderProcess]:
    process = HolderProcess(path)
    yield process
    process.stop()


@pytest.fixture
def briefly_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks that are to be broken are watched for less than a second."""
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(turns, "WATCH_SECONDS", 0.2)


def moved_elsewhere(path: Place) -> Turn:
    """Have the last turn say that its holder is a process of another machine."""
    found = turns_beside(path)
    number, last = found.last()
    assert last is not None
    there = replace(last, process=replace(last.process, space="of another machine"))
    found.write(number, there)
    return there


def test_of_two_processes_that_race_for_a_lock_exactly_one_has_it(
    path: Place, other: HolderProcess
) -> None:
    both = [HolderProcess(path), other]
    winners = set()
    for _ in range(ROUNDS):
        for one in both:
            one.tell("take")
        answers = [one.answer() for one in both]
        assert answers.count("taken") == 1
        winner = answers.index("taken")
        assert f"process {both[winner].pid} on" in answers[1 - winner]
        assert both[winner].asked("end") == "ended"
        winners.add(winner)
    assert winners == {0, 1}
    both[0].stop()
    assert turns_beside(path).newest() == ROUNDS


@pytest.mark.usefixtures("briefly_watched")
def test_a_build_that_died_elsewhere_is_named_and_followed_on_request_only(
    path: Place, other: HolderProcess
) -> None:
    assert other.asked("take") == "taken"
    other.stop()
    died = moved_elsewhere(path)
    with pytest.raises(CacheBusyError) as error, TurnLocks(path).preparing(print):
        pass
    said = str(error.value)
    assert said.startswith(f"{path}: another build is at work on it: process {other.pid} on ")
    assert f"since {died.holder.since} (last sign of life at {died.seen} by its clock)" in said
    assert "`repa-cache build --break-lock` takes over its lock" in said
    told: list[str] = []
    with TurnLocks(path, break_lock=True).preparing(told.append):
        (text,) = told
        assert text.startswith(f"watching for 60 s whether there is life in process {other.pid} on")
        assert turns_beside(path).newest() == 2
    with TurnLocks(path).preparing(print):
        pass


def test_a_build_that_is_alive_is_not_broken(path: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(turns, "LOOK_SECONDS", 0.1)
    with TurnLocks(path).at_work():
        moved_elsewhere(path)
        with (
            pytest.raises(CacheBusyError, match=r"gives signs of life: .*builds that died\.$"),
            TurnLocks(path, break_lock=True).preparing(print),
        ):
            pass


def test_a_process_that_died_on_this_machine_is_followed_at_once(
    path: Place, other: HolderProcess
) -> None:
    assert other.asked("take") == "taken"
    other.stop()
    with TurnLocks(path).at_work():
        assert turns_beside(path).newest() == 2


def test_a_later_process_of_the_same_number_is_not_taken_for_the_holder() -> None:
    me = Process.me()
    assert not me.has_ended
    assert replace(me, started=me.started - 1).has_ended
    assert not replace(me, started=me.started - 1, space="of another machine").has_ended
    assert not replace(me, pid=1 << 30, space="").has_ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_turn_of_a_process(
    path: Place, other: HolderProcess, number: int
) -> None:
    assert other.asked("take") == "taken"
    assert other.stop(number) == -number
    _, last = turns_beside(path).last()
    assert last is not None
    assert last.is_over


def test_a_holder_whose_lock_was_broken_may_write_nothing_nor_may_its_workers(
    path: Place,
) -> None:
    slow = TurnLocks(path)
    with slow.at_work():
        worker = pickle.loads(pickle.dumps(slow.for_workers()))
        worker.confirm()
        moved_elsewhere(path)
        turns_beside(path).take(Turn.mine(), lambda *_: True)
        for step in (slow.confirm, worker.confirm, worker.shard(0).__enter__):
            with pytest.raises(CacheBusyError, match=r"another build took over the lock .*process"):
                step()
        with pytest.raises(CacheBusyError, match="took over"), slow.preparing(print):
            pass
    number, last = turns_beside(path).last()
    assert (number, last is not None and last.is_over) == (2, False)


def test_the_lock_lasts_until_all_work_that_began_under_it_is_done(path: Place) -> None:
    locks, work = TurnLocks(path), ExitStack()
    with locks.preparing(print):
        work.enter_context(locks.at_work())
    with pytest.raises(CacheBusyError), TurnLocks(path).preparing(print):
        pass
    with locks.preparing(print), locks.shard(0) as holder:
        assert holder is None
    work.close()
    with TurnLocks(path).preparing(print):
        pass


@pytest.mark.usefixtures("briefly_watched")
def test_a_turn_whose_maker_died_before_it_wrote_its_name_is_held_by_somebody_unknown(
    path: Place,
) -> None:
    turns._create(turns_beside(path).folder / "1", b"")
    with pytest.raises(CacheBusyError, match="process 0 on an unknown host"):
        TurnLocks(path).at_work().__enter__()
    with TurnLocks(path, break_lock=True).preparing(print):
        pass


def test_a_store_that_writes_twice_what_is_to_be_new_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with careless_store.running() as store:
        for name, value in object_store.environment(store.server_port).items():
            monkeypatch.setenv(name, value)
        place = StorePath("s3://careless/x.zarr")
        expected = r"^s3://careless: .* is written twice\. Without conditional writes, two builds"
        with pytest.raises(LockError, match=expected), build_locks(place, print).at_work():
            pass
        assert not store.objects


def test_an_own_turn_is_known_although_a_request_for_it_was_repeated(
    path: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = turns._create

    def repeated(place: Place, content: bytes) -> None:
        real(place, content)
        real(place, content)

    monkeypatch.setattr(turns, "_create", repeated)
    with TurnLocks(path).at_work():
        assert turns_beside(path).newest() == 1
