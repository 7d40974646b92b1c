"""Arguments that several commands take, and the configuration that these give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pipeline.launchers import checked_world
from stages.weights.export_options import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cache.stores.places import Place as Place
    from pipeline.config import Config
    from pipeline.required_files import Need
else:
    # What is typed becomes one by the argument's parser.
    Place = Path

DEFAULT_CONFIG = Path("pipeline.toml")
# Options that take all words up to the next option, and not only one.
MANY = ("--rows", "--columns")


class ManyWords(TyperCommand):
    """A command with options that take many words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_each_with_its_option(args)))


def _each_with_its_option(words: Sequence[str]) -> Iterator[str]:
    """Words, with an option that takes many before each of them, as the parser wants it."""
    option = None
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        is_option = word.startswith("-")
        if word in MANY and not following.startswith("-"):
            option = word
        elif option is not None and not is_option:
            yield from (option, word)
        else:
            option = None
            yield word


ConfigPath = Annotated[
    Path, typer.Option("--config", help="The configuration; paths in it are relative to it.")
]
# Of commands that also do without.
ChosenConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The configuration; default: what is named tells it, or else pipeline.toml.",
    ),
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
    Weights,
    typer.Option(help="The moving average, the weights as trained, or the second moving average."),
]
ChosenRun = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="A run's folder, as runs/demo; default: train.run."),
]


def place_typed(typed: str) -> Place:
    """A path or an address, for the parser."""
    from cache.stores.places import place_of

    return place_of(typed)


ChosenCache = Annotated[
    Place | None,
    typer.Argument(
        metavar="CACHE",
        parser=place_typed,
        help="A cache, as demo.zarr or s3://bucket/demo.zarr; default: cache.path.",
    ),
]


def load(command: str, path: Path, overrides: list[str]) -> Config:
    """The configuration of a command.

    What does the work is imported later: torch takes seconds, which a mistake in a setting should
    not cost.
    """
    from pipeline.config import load_config

    world = checked_world(command)
    # Only training has a batch to share.
    config = load_config(path, overrides, world if command == "train" else 1, needs_of(command))
    return with_packages(command, config, path)


def load_for_run(command: str, run: Path | None, path: Path | None, overrides: list[str]) -> Config:
    """The configuration of a command on a run: its own, unless `path` names another.

    Without a run it is that of pipeline.toml, which names one.
    """
    if run is None or path is not None:
        named = [] if run is None else [set_path("train.run", run)]
        return load(command, path or DEFAULT_CONFIG, [*overrides, *named])
    checked_world(command)
    from pipeline.stored_configs import run_config

    return with_packages(command, run_config(run, overrides, needs_of(command)), run)


def load_for_cache(
    command: str, cache: Place | None, path: Path | None, overrides: list[str]
) -> Config:
    """The configuration of a command on a cache: as the cache tells it, unless `path` names one.

    Without a cache it is that of pipeline.toml, which names one.
    """
    if cache is None or path is not None:
        named = [] if cache is None else [set_path("cache.path", cache)]
        return load(command, path or DEFAULT_CONFIG, [*overrides, *named])
    checked_world(command)
    from pipeline.stored_configs import cache_config

    return cache_config(cache, overrides)


def needs_of(command: str) -> frozenset[Need]:
    """What has to be there for a command."""
    from pipeline.required_files import NEEDS

    return NEEDS.get(command, frozenset())


def set_path(key: str, place: Place) -> str:
    """A setting as it is given with --set, for a place as it is typed."""
    from stages.setting_paths import literal

    return f"{key}={json.dumps(literal(place))}"


def with_packages(command: str, config: Config, path: Path) -> Config:
    """A configuration, if the optional packages that a command needs with it are installed.

    path: what it is of. Raises ConfigError.
    """
    from pipeline.config import config_error
    from pipeline.requirements import missing_packages

    if problems := list(missing_packages(command, config)):
        raise config_error(path, problems)
    return config
