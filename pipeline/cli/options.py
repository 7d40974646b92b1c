"""What commands have in common: their options, and the configuration that these give."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import Config, ConfigError, load_config
from pipeline.launchers import DISTRIBUTED, check_launch
from stages.train.options import Weights

ConfigPath = Annotated[
    Path, typer.Option("--config", help="The configuration; paths in it are relative to it.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."),
]
CheckpointStep = Annotated[
    int | None,
    typer.Option("--checkpoint", metavar="STEP", help="Of which step; default: the newest."),
]
WhichWeights = Annotated[
    Weights, typer.Option(help="The moving average, or the weights as trained.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def load(command: str, path: Path, overrides: list[str]) -> Config:
    """The configuration of a command.

    What does the work is imported later: torch takes seconds, which a mistake in a setting should
    not cost.
    """
    if command in DISTRIBUTED | {"run"}:
        check_launch(command)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and command not in DISTRIBUTED:
        raise ConfigError(f"`repa-cache {command}` runs in one process, not under torchrun.")
    # Only training has a batch to share, and only a plan is made before anything is there.
    world = world if command == "train" else 1
    return load_config(path, overrides, world, has_files=command != "plan")
