"""A program for torchrun: trains one configuration after another in the same processes.

    torchrun --nproc-per-node 2 tests/tools/ranks.py pipeline.toml OVERRIDES.json

OVERRIDES.json holds a list of settings, as for --set, for each run. Those that compile note in
their folder how many graphs that are, `graphs.json`, and compute what they would without.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphs import noted_graphs

from pipeline.config import Config, load_config
from pipeline.process_group import placement
from stages.placement import Placement
from stages.train.loop import train

GRAPHS = "graphs.json"


@contextmanager
def noting_graphs(settings: Config, place: Placement) -> Iterator[None]:
    if settings.train.compute.compile is not True:
        yield
        return
    with noted_graphs() as found:
        yield
    if place.is_main:
        (settings.train.run / GRAPHS).write_text(json.dumps(len(found)))


def main() -> None:
    config, scenarios = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    with placement("cpu") as place:
        for overrides in scenarios:
            settings = load_config(config, overrides, int(os.environ["WORLD_SIZE"]))
            with noting_graphs(settings, place):
                train(settings.train, settings.tensors, place)


if __name__ == "__main__":
    main()
