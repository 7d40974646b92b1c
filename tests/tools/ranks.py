"""A program for torchrun: trains one configuration after another in the same processes.

    torchrun --nproc-per-node 2 tests/tools/ranks.py pipeline.toml OVERRIDES.json

OVERRIDES.json holds a list of settings, as for --set, for each run.
"""

import json
import os
import sys
from pathlib import Path

from pipeline.config import load_config
from pipeline.process_group import placement
from stages.train.loop import train


def main() -> None:
    config, scenarios = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    with placement("cpu") as place:
        for overrides in scenarios:
            settings = load_config(config, overrides, int(os.environ["WORLD_SIZE"]))
            train(settings.train, settings.tensors, place)


if __name__ == "__main__":
    main()
