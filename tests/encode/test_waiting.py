import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stages.encode.images.sources import archives
from stages.encode.images.sources.archives import in_order


@pytest.mark.parametrize("waits_at", [None, 0, 3])
def test_work_is_done_by_several_threads_for_a_while_where_it_waits(
    monkeypatch: pytest.MonkeyPatch, waits_at: int | None
) -> None:
    monkeypatch.setattr(archives, "SPELL", 4)
    clock = {"all": 0.0, "own": 0.0}
    monkeypatch.setattr(archives.time, "perf_counter", lambda: clock["all"])
    monkeypatch.setattr(archives.time, "thread_time", lambda: clock["own"])
    here = threading.get_ident()

    def work(item: int) -> tuple[int, bool]:
        clock["own"] += 1
        clock["all"] += 100 if item == waits_at else 2
        return item, threading.get_ident() == here

    with ThreadPoolExecutor(2) as pool:
        done = list(in_order(pool, work, range(9)))
    elsewhere = range(0) if waits_at is None else range(waits_at + 1, waits_at + 5)
    assert done == [(item, item not in elsewhere) for item in range(9)]


def test_an_error_of_work_is_raised_where_its_turn_comes() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        done.extend(in_order(pool, lambda item: 1 // (3 - item), range(9)))
    assert done == [0, 0, 1]
