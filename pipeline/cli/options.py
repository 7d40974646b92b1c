"""What commands have in common: their options, and the configuration that these give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.exits import ConfigError
from pipeline.launchers import DISTRIBUTED, check_launch
from stages.processes import world_size
from stages.train.options import Weights

if TYPE_CHECKING:
    from pipeline.config import Config

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
    from pipeline.config import config_error, load_config
    from pipeline.extras import missing_packages

    if command in DISTRIBUTED | {"run"}:
        check_launch(command)
    world = world_size()
    if world > 1 and command not in DISTRIBUTED:
        raise ConfigError(
            f"`repa-cache {command}` runs in one process, not under torchrun, and WORLD_SIZE is "
            f"{world}. If another launcher left that behind: unset WORLD_SIZE"
        )
    # Only training has a batch to share, and only a plan is made before anything is there.
    world = world if command == "train" else 1
    config = load_config(path, overrides, world, has_files=command != "plan")
    if problems := list(missing_packages(command, config)):
        raise config_error(path, problems)
    return config
