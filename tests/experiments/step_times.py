"""Measures what a step of each method takes on this machine: from the cache, and encoding in it.

    OMP_NUM_THREADS=1 python tests/experiments/step_times.py SWEEP OUT.csv

SWEEP is a sweep.toml whose cache is built. Encoding is done by the run's encoder in the precision
of the transformer, from images that lie in memory: neither reading nor decoding them counts.
Loops alternate, round after round; OUT.csv gets the median of each, and what building took.
"""

import argparse
import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from training_loops import Loop, OnlineEncoder, OwnLoop, encoding_loop, measure

from cache.rows import count_rows
from pipeline.config import Config
from pipeline.sweep.sweep_file import load_sweep
from stages.encode.building.build_times import seconds_per_image
from stages.placement import find_device

CACHED, ONLINE, BUILD = "cache", "online", "build"
COLUMNS = ("method", "how", "seconds")


def loops_of(config: Config) -> dict[str, Loop]:
    """A run's loops, by how they come to tokens; without alignment there is one."""
    settings, tensors, encode = config.train, config.tensors, config.encode
    loops: dict[str, Loop] = {CACHED: OwnLoop(settings, tensors)}
    for name in settings.encoders:
        weights = encode.encoders[name].weights
        assert weights is not None, name
        encoder = OnlineEncoder(encode.spec(name), encode.input_size(name), weights, settings)
        side = encode.dataset.resolution
        loops[ONLINE] = encoding_loop(encoder, side, settings, tensors)
    return loops


def step_seconds(
    loops: Mapping[tuple[str, str], Loop], steps: int, rounds: int
) -> dict[tuple[str, str], float]:
    """The median seconds of a step of each loop."""
    device, found = find_device("auto"), {key: list[float]() for key in loops}
    for number in range(rounds + 1):
        for key, loop in loops.items():
            spent = measure(loop, device, steps if number else 2)
            if number:
                found[key].append(spent.seconds / steps)
    return {key: median(seconds) for key, seconds in found.items()}


def build_seconds(config: Config, encoder: str) -> float:
    """What encoding all images once took, as it is kept in the cache."""
    path = config.cache.path
    each = seconds_per_image(path, f"features/{encoder}")
    assert each is not None, encoder
    return each * count_rows(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what a step of each method takes.")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    configs: dict[str, Config] = {}
    for run in load_sweep(options.sweep).runs:
        configs.setdefault(run.group, run.config)
    loops = {
        (name, how): loop
        for name, config in configs.items()
        for how, loop in loops_of(config).items()
    }
    times = step_seconds(loops, options.steps, options.rounds)
    encoders = {name: one for one in configs.values() for name in one.train.encoders}
    rows = [(method, how, f"{seconds:.4f}") for (method, how), seconds in times.items()]
    rows += [(name, BUILD, f"{build_seconds(one, name):.1f}") for name, one in encoders.items()]
    with options.out.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
