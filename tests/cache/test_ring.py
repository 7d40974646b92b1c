import errno
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import ROOT, TOOLS
from tiny_cache import DENSE, ROWS, SHARDED, make_cache, values

from cache.arrays import RowReader, aligned_buffer
from cache.errors import CacheReadError
from cache.order import order
from cache.reader import Cache
from cache.ring import BatchRing, Recycled

BATCH = 6


def rows_of(step: int) -> np.ndarray:
    return order(0, step, 0, 1, rows=ROWS, batch=BATCH)


@contextmanager
def ring_over(
    sources: list[RowReader], slots: int = 3, timeout: float = 60, stop: int = 100
) -> Iterator[BatchRing]:
    buffers = [
        [aligned_buffer((BATCH, *source.shape[1:]), source.dtype) for source in sources]
        for _ in range(slots)
    ]
    ring = BatchRing(
        sources,
        lambda step: [rows_of(step)] * len(sources),
        buffers,
        threads=3,
        stop=stop,
        timeout_seconds=timeout,
    )
    yield ring
    ring.close()


class Source:
    """An array that is its row numbers, and does something before it is read."""

    shape = (ROWS,)
    dtype = np.dtype(np.int64)

    def __init__(self, before: Any) -> None:
        self.before = before

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        self.before(rows)
        out[:] = rows


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[RowReader]:
    path = tmp_path_factory.mktemp("cache") / "x.zarr"
    make_cache(path)
    reader = Cache(path).column("features/x", verify=True)
    return [reader.rows("tokens"), reader.rows("class_token")]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_every_step_gets_its_rows_in_order_and_after_a_jump(
    sources: list[RowReader], slots: int
) -> None:
    with ring_over(sources, slots) as ring:
        for step in [*range(9), 40, 41, 3, 4]:
            for spec, batch in zip((SHARDED, DENSE), ring.take(step), strict=True):
                np.testing.assert_array_equal(batch, values(spec)[rows_of(step)])


def test_the_same_few_buffers_are_used_over_and_over(sources: list[RowReader]) -> None:
    with ring_over(sources, slots=3) as ring:
        addresses = [ring.take(step)[0].ctypes.data for step in range(9)]
    assert addresses == addresses[:3] * 3
    assert len(set(addresses)) == 3


def test_batches_are_read_ahead_up_to_the_last_step() -> None:
    read: set[tuple[int, ...]] = set()
    third = threading.Event()

    def note(rows: np.ndarray) -> None:
        read.add(tuple(rows))
        if len(read) == 3:
            third.set()

    with ring_over([Source(note)], slots=4, stop=3) as ring:
        ring.take(0)
        assert third.wait(30)
        ring.take(2)
    assert read == {tuple(rows_of(step)) for step in range(3)}


def test_a_failing_disk_is_an_error_of_the_step_that_needs_the_batch() -> None:
    def fail(rows: np.ndarray) -> None:
        if tuple(rows) == tuple(rows_of(2)):
            raise OSError(errno.EIO, "Input/output error")

    with ring_over([Source(fail)]) as ring:
        for step in (0, 1):
            np.testing.assert_array_equal(ring.take(step)[0], rows_of(step))
        with pytest.raises(CacheReadError, match=r"step 2: .*Input/output error"):
            ring.take(2)


def test_a_disk_that_hangs_is_an_error_after_the_timeout() -> None:
    forever = threading.Event()
    with ring_over([Source(lambda _: forever.wait())], timeout=0.05) as ring:
        with pytest.raises(CacheReadError, match=r"step 7: .* within 0\.05 s"):
            ring.take(7)
        forever.set()


HANGING = """
import threading, numpy as np
from test_ring import Source, ring_over
with ring_over([Source(lambda _: threading.Event().wait())], timeout=0.05) as ring:
    ring.take(0)
"""


def test_a_process_with_a_hanging_disk_still_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "CacheReadError: step 0" in ended.stderr


def take_elsewhere(ring: BatchRing, queue: Any) -> None:
    queue.put([ring.take(step)[0].copy() for step in (3, 4, 5)])


def test_a_ring_in_use_works_in_a_forked_process_and_goes_on_in_this_one(
    sources: list[RowReader],
) -> None:
    context = multiprocessing.get_context("fork")
    with ring_over(sources) as ring:
        ring.take(2)
        queue = context.Queue()
        process = context.Process(target=take_elsewhere, args=(ring, queue))
        process.start()
        for step, batch in zip((3, 4, 5), queue.get(timeout=60), strict=True):
            np.testing.assert_array_equal(batch, values(SHARDED)[rows_of(step)])
        process.join()
        np.testing.assert_array_equal(ring.take(3)[0], values(SHARDED)[rows_of(3)])


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    made: list[np.ndarray] = []

    def make() -> np.ndarray:
        made.append(np.zeros(8))
        return made[-1]

    recycled = Recycled(make)
    one, other = recycled.buffer(), recycled.buffer()
    tensor, part = torch.from_numpy(one), torch.from_numpy(other)[2:4]
    one[:], other[:] = 1, 2
    del one, other
    recycled.buffer()[:] = 3
    assert (tensor.tolist(), part.tolist()) == ([1] * 8, [2] * 2)
    assert len(made) == 3
    del part
    recycled.buffer()[:] = 4
    assert tensor.tolist() == [1] * 8
    assert len(made) == 3


def test_a_batch_whose_buffers_are_exchanged_stays(sources: list[RowReader]) -> None:
    with ring_over(sources) as ring:
        first = ring.take(0)
        expected = [buffer.copy() for buffer in first]
        ring.exchange(0, [np.empty_like(buffer) for buffer in first])
        for step in range(1, 9):
            ring.take(step)
        for buffer, values in zip(first, expected, strict=True):
            np.testing.assert_array_equal(buffer, values)
