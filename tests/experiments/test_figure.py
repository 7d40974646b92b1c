"""The experiment's pictures and table are those of its numbers."""

from pathlib import Path

import figure
import numpy as np
import pytest
from PIL import Image

README = Path(__file__).with_name("README.md")


@pytest.fixture(scope="module")
def numbers() -> list[figure.Number]:
    return figure.read_numbers(figure.RESULTS / "methods.csv")


def assert_same_picture(path: Path, committed: Path) -> None:
    with Image.open(path) as one, Image.open(committed) as other:
        assert one.size == other.size
        difference = np.asarray(one.convert("L"), float) - np.asarray(other.convert("L"), float)
    # Fonts of another version move letters by a pixel.
    assert np.abs(difference).mean() < 2


def test_the_pictures_are_drawn_from_the_numbers(
    numbers: list[figure.Number], tmp_path: Path
) -> None:
    times = figure.read_times(figure.RESULTS / "times.csv")
    figure.draw_methods(numbers, times, tmp_path / "methods.png")
    figure.draw_states(numbers, tmp_path / "methods-states.png")
    for path in tmp_path.iterdir():
        assert_same_picture(path, figure.PICTURES / path.name)


def test_every_method_has_the_same_seeds_and_steps(numbers: list[figure.Number]) -> None:
    runs = {(one.method, one.seed, one.step) for one in numbers if one.metric == figure.DISTANCE}
    methods, seeds, steps = ({one[place] for one in runs} for place in range(3))
    assert methods == set(figure.NAMES)
    assert len(runs) == len(methods) * len(seeds) * len(steps)


def test_the_table_is_made_of_the_numbers(numbers: list[figure.Number]) -> None:
    assert "\n".join(figure.table(numbers)) in README.read_text()


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
