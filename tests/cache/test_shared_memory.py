"""Arrays that two real processes hold in memory once."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from smaps import shared_kilobytes

from cache.arrays import MemoryRows, RowReader
from cache.locking.holders import process_space
from cache.shared_memory import SharedMemory

ROWS, ROW = 33, 40_000
# Of two arrays, in bytes.
SIZE = 2 * ROWS * ROW * 8
FORK = multiprocessing.get_context("fork")


class Numbers:
    """An array whose rows are full of their number. read_rows: those that were read."""

    shape = (ROWS, ROW)
    dtype = np.dtype(np.int64)

    def __init__(self) -> None:
        self.read_rows: list[int] = []

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        self.read_rows += rows.tolist()
        out[:] = rows[:, None]


def hold(number: int, pipe: Connection) -> tuple[list[int], bool, int, str | None]:
    """Hold two arrays.

    Says which rows of the first were read, whether all are right, and what this process answers
    for of shared memory, in kB.
    """

    def exchange(told: Any) -> list[Any]:
        pipe.send(told)
        both = [told, pipe.recv()]
        return both if number == 0 else both[::-1]

    shared, source = SharedMemory(number, 2, exchange), Numbers()
    held: list[RowReader] = [MemoryRows(source, shared), MemoryRows(Numbers(), shared)]
    rows = np.array([32, 0, 16, 16])
    out = np.empty((4, ROW), np.int64)
    is_right = True
    for array in held:
        array.read(rows, out)
        is_right &= bool((out == rows[:, None]).all())
    # Both have it while it is counted.
    exchange(None)
    found = shared_kilobytes()
    exchange(None)
    return source.read_rows, is_right, found, shared.problem


def both(prepare: tuple[Callable[[], None], Callable[[], None]]) -> list[Any]:
    """What two processes say, each of which prepares itself first."""

    def work(number: int, pipe: Connection, out: Connection) -> None:
        prepare[number]()
        out.send(hold(number, pipe))

    pipes, outs = FORK.Pipe(), [FORK.Pipe(duplex=False) for _ in range(2)]
    processes = [
        FORK.Process(target=work, args=(number, pipes[number], outs[number][1]))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    said = [out.recv() if out.poll(30) else None for out, _ in outs]
    for process in processes:
        process.join()
    return said


def nothing() -> None:
    pass


def test_two_processes_read_half_each_and_hold_one_copy() -> None:
    said = both((nothing, nothing))
    assert [rows for rows, *_ in said] == [[*range(16)], [*range(16, 33)]]
    assert [rest for _, *rest in said] == [[True, kilobytes, None] for _, _, kilobytes, _ in said]
    # Up to whole pages.
    assert sum(kilobytes for _, _, kilobytes, _ in said) * 1024 == pytest.approx(SIZE, rel=0.01)


def without_memory() -> None:
    os.posix_fallocate = lambda *_: fail("No space left")  # type: ignore[assignment]


def without_sight() -> None:
    real = os.open
    os.open = lambda path, *more: fail("not seen") if "/fd/" in str(path) else real(path, *more)  # type: ignore[assignment]


def fail(reason: str) -> Any:
    raise OSError(reason)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [((without_memory, nothing), "No space left"), ((nothing, without_sight), "not seen")],
    ids=["none is left", "one cannot see it"],
)
def test_where_memory_cannot_be_shared_each_holds_a_copy_and_knows_why(
    prepare: tuple[Callable[[], None], Callable[[], None]], reason: str
) -> None:
    for rows, is_right, found, problem in both(prepare):
        assert rows == [*range(ROWS)]
        assert is_right
        assert found == 0
        assert problem == reason


def test_processes_of_a_machine_know_it_by_one_name() -> None:
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: queue.put(process_space()))
    process.start()
    assert process_space()
    assert queue.get() == process_space()
    process.join()
