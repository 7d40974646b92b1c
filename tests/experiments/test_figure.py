"""What the experiment's pictures are drawn from."""

from pathlib import Path

import figure


def test_a_curve_has_the_mean_over_seeds_and_their_range() -> None:
    numbers = [
        figure.Number("repa", seed, 10, "probe", noise, "2", value)
        for seed, noise, value in ((0, "0.2", 0.1), (0, "0.5", 0.4), (1, "0.2", 0.6))
    ]
    (one,) = figure.spreads(numbers, "repa", "probe", max).values()
    assert (one.mean, one.least, one.most) == (0.5, 0.4, 0.6)


def test_hours_from_the_cache_count_what_encoding_took_once() -> None:
    times = {("repa", "cache"): 1.0, ("repa", "online"): 3.0, (figure.TARGET, "build"): 3600.0}
    assert figure.hours_of(times, "repa", "cache", [3600]) == [2]
    assert figure.hours_of(times, "repa", "online", [3600]) == [3]


def test_numbers_of_other_runs_stay_when_some_are_gathered(tmp_path: Path) -> None:
    path = tmp_path / "methods.csv"
    old = [figure.Number("none", seed, 10, "loss", "0.5", "", 1.0) for seed in (0, 1)]
    figure.write_numbers(old, path)
    new = figure.Number("none", 1, 10, "loss", "0.5", "", 2.0)
    figure.write_numbers([new], path)
    assert figure.read_numbers(path) == [old[0], new]
