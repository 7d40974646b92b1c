from itertools import product
from pathlib import Path

import pytest
import torch

from stages.placement import Placement
from stages.train.randomness import Draw, Stream, seed_for
from stages.train.settings import TrainSettings

CPU = torch.device("cpu")


def draw(place: Placement, times: str = "uniform") -> Draw:
    return Draw(TrainSettings(run=Path("run"), batch_size=6, times=times), (4, 2, 2), place)


def test_no_two_members_of_any_streams_share_a_seed() -> None:
    members = [(), *product(range(8)), *product(range(8), range(8))]
    seeds = [seed_for(s, stream, *m) for s in range(3) for stream in Stream for m in members]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("times", ["uniform", "lognormal"])
def test_ranks_together_draw_what_one_rank_would(times: str) -> None:
    whole = draw(Placement(CPU), times).at(7)
    parts = [draw(Placement(CPU, rank, 3), times).at(7) for rank in range(3)]
    for name in ("posterior", "noise", "time", "dropped"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name)), name


def test_draws_depend_on_the_step_alone() -> None:
    one = draw(Placement(CPU))
    first, other = one.at(3), one.at(4)
    assert torch.equal(one.at(3).noise, first.noise)
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.noise, first.posterior)
    assert ((first.time >= 0) & (first.time <= 1)).all()
