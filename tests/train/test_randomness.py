from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.model.interpolants import shift_of, shifted
from stages.placement import Placement
from stages.train.batches import split
from stages.train.randomness import Randomness, Stream, seed_for
from stages.train.train_settings import TrainSettings

CPU = torch.device("cpu")


NAMED = {"mask": (3,), "other": (3,)}


def draw(place: Placement, **settings: Any) -> Randomness:
    own = TrainSettings(run=Path("run"), **{"batch_size": 6, **settings})
    return Randomness(own, (4, 2, 2), place, NAMED)


def test_no_two_members_of_any_streams_share_a_seed() -> None:
    members = [(), *product(range(8)), *product(range(8), range(8))]
    seeds = [seed_for(s, stream, *m) for s in range(3) for stream in Stream for m in members]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    "settings", [{"times": "uniform"}, {"times": "lognormal"}, {"model": "DiT-S/2"}]
)
def test_ranks_together_draw_what_one_rank_would(settings: dict[str, str]) -> None:
    whole = draw(Placement(CPU), **settings).at(7)
    parts = [draw(Placement(CPU, rank, 3), **settings).at(7) for rank in range(3)]
    for name in ("posterior", "noise", "time", "dropped", "mask"):
        together = torch.cat([part[name] for part in parts])
        assert torch.equal(together, whole[name]), name


def test_draws_depend_on_the_step_alone() -> None:
    one = draw(Placement(CPU))
    first, other = one.at(3), one.at(4)
    assert torch.equal(one.at(3)["noise"], first["noise"])
    assert not torch.equal(first["noise"], other["noise"])
    assert not torch.equal(first["noise"], first["posterior"])
    assert ((first["time"] >= 0) & (first["time"] <= 1)).all()


@pytest.mark.parametrize("times", ["uniform", "lognormal"])
def test_times_are_shifted_towards_noise(times: str) -> None:
    plain = draw(Placement(CPU), times=times).at(3)["time"]
    moved = draw(Placement(CPU), times=times, time_shift=3.0).at(3)["time"]
    torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain))
    of_size = draw(Placement(CPU), times=times, time_shift="auto").at(3)["time"]
    # Latents of 16 numbers, where 4096 are not shifted.
    torch.testing.assert_close(of_size, plain / 16 / (1 + (1 / 16 - 1) * plain))


def test_times_of_sr_dit_are_the_published_ones(methods: Any) -> None:
    before, latent = methods["speedrun.in.t_before_shift"], methods["speedrun.in.x"].shape[1:]
    # The file has a base of 256 in the place of 4096.
    shift = shift_of("auto", latent) * 4
    torch.testing.assert_close(shifted(before, shift), methods["speedrun.t"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_draws_are_those_of_parts_of_the_images(parts: int) -> None:
    whole = draw(Placement(CPU)).at(3)
    of_parts = split(whole, parts)
    assert len(of_parts) == parts
    for name, tensor in whole.items():
        assert torch.equal(torch.cat([part[name] for part in of_parts]), tensor)


def test_each_name_has_numbers_of_its_own_at_each_step() -> None:
    first, other = draw(Placement(CPU)).at(3), draw(Placement(CPU)).at(4)
    assert first["mask"].shape == (6, 3)
    assert not torch.equal(first["mask"], first["other"])
    assert not torch.equal(first["mask"], other["mask"])


def test_dit_takes_every_step_of_its_diffusion_alike() -> None:
    time = draw(Placement(CPU), model="DiT-S/2", batch_size=100_000).at(0)["time"]
    assert (time.min(), time.max(), time.dtype) == (0, 999, torch.int64)
    assert time.float().mean().item() == pytest.approx(499.5, abs=4)
    assert (time == 0).sum().item() == pytest.approx(100, abs=40)


@pytest.mark.parametrize(("legacy", "effective"), [(False, 0.1), (True, 0.19)])
def test_labels_are_dropped_once_or_as_in_the_first_published_runs_twice(
    legacy: bool, effective: float
) -> None:
    dropped = draw(Placement(CPU), batch_size=100_000, legacy_label_dropping=legacy).at(0)[
        "dropped"
    ]
    assert dropped.float().mean().item() == pytest.approx(effective, abs=0.005)


def test_dropping_labels_has_a_stream_of_its_own() -> None:
    one, other = (draw(Placement(CPU), label_dropping=p).at(3) for p in (0.0, 0.9))
    assert not one["dropped"].any()
    assert other["dropped"].any()
    assert torch.equal(one["noise"], other["noise"])
    assert torch.equal(one["time"], other["time"])
