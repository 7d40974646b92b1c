import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.order import order, permutation


@given(rows=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_a_permutation_holds_every_row_once(rows: int, seed: int) -> None:
    assert sorted(permutation(rows, seed)) == list(range(rows))


def test_a_permutation_is_the_same_for_ever() -> None:
    assert permutation(8, seed=3).tolist() == [6, 1, 5, 2, 7, 4, 3, 0]


@given(
    rows=st.integers(1, 40),
    share=st.integers(1, 6),
    world=st.integers(1, 5),
    step=st.integers(0, 30),
    block=st.integers(1, 9),
)
def test_ranks_together_read_what_one_rank_would(
    rows: int, share: int, world: int, step: int, block: int
) -> None:
    size = {"rows": rows, "batch": share * world, "block": block}
    alone = order(7, step, 0, 1, **size)
    parts = [order(7, step, rank, world, **size) for rank in range(world)]
    assert np.concatenate(parts).tolist() == alone.tolist()


@given(share=st.integers(1, 6), world=st.integers(1, 5), epoch=st.integers(0, 2))
def test_ranks_read_different_rows_within_an_epoch(share: int, world: int, epoch: int) -> None:
    batch = share * world
    rows, steps = 4 * batch, range(4 * epoch, 4 * epoch + 4)
    read = [
        {int(row) for step in steps for row in order(3, step, rank, world, rows=rows, batch=batch)}
        for rank in range(world)
    ]
    assert sum(map(len, read)) == len(set().union(*read)) == rows


@given(
    rows=st.integers(1, 40),
    batch=st.integers(1, 12),
    epochs=st.integers(1, 3),
    block=st.integers(1, 50),
)
def test_every_epoch_reads_every_row_once(rows: int, batch: int, epochs: int, block: int) -> None:
    steps = -(-rows * epochs // batch)
    size = {"rows": rows, "batch": batch, "block": block}
    stream = np.concatenate([order(1, step, 0, 1, **size) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_epochs_and_seeds_differ() -> None:
    first = order(0, 0, 0, 1, rows=100, batch=100)
    assert first.tolist() != order(0, 1, 0, 1, rows=100, batch=100).tolist()
    assert first.tolist() != order(1, 0, 0, 1, rows=100, batch=100).tolist()


@pytest.mark.parametrize(
    ("rows", "batch", "rank", "world"), [(0, 4, 0, 1), (9, 4, 0, 3), (9, 4, 2, 2)]
)
def test_an_order_that_cannot_be_is_refused(rows: int, batch: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="no order"):
        order(0, 0, rank, world, rows=rows, batch=batch)


def test_blocks_stay_together_in_another_order_each_epoch() -> None:
    epochs = [order(0, step, 0, 1, rows=64, batch=64, block=8) for step in range(2)]
    for epoch in epochs:
        starts = epoch.reshape(8, 8)[:, 0]
        assert (epoch.reshape(8, 8) == starts[:, None] + np.arange(8)).all()
        assert sorted(starts) == list(range(0, 64, 8))
    assert epochs[0].tolist() != epochs[1].tolist()
