"""A program for torchrun: reads the first batches of a run, and says what memory they take.

torchrun --nproc-per-node 2 tests/tools/sharing.py pipeline.toml OUT

Each rank writes OUT/RANK.npz: the arrays of each step, and `shared`, what it answers for of shared
memory, in kB; then memory cannot be shared.
"""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import numpy as np
from runs import cached_batches
from smaps import shared_kilobytes

from pipeline.config import load_config
from pipeline.process_group import placement
from stages.placement import Placement, barrier, machine_memory

CONFIG, OUT = map(Path, sys.argv[1:])


def write_batches(place: Placement) -> None:
    config = load_config(CONFIG, world=place.world)
    with machine_memory(place) as shared:
        batches = cached_batches(config, place, shared)
    with closing(batches):
        arrays = {
            f"{step} {number}": array.numpy().copy()
            for step in range(config.train.steps)
            for number, array in enumerate(batches.take(step))
        }
    barrier(place)
    np.savez(OUT / f"{place.rank}.npz", shared=shared_kilobytes(), **arrays)
    barrier(place)


def refuse(*_: int) -> NoReturn:
    raise OSError("planted")


def main() -> None:
    with placement("cpu") as place:
        write_batches(place)
        os.posix_fallocate = refuse
        with machine_memory(place) as shared:
            assert shared is not None
            assert shared.buffer((2,), "int8") is None


if __name__ == "__main__":
    main()
