"""The commands that need nothing but a configuration."""

from collections.abc import Callable
from pathlib import Path

from pipeline.cli.options import ConfigPath, Debug, Overrides, load
from pipeline.exits import reported_errors


def plain_command(name: str, summary: str) -> Callable[..., None]:
    """A command that does what `COMMANDS` has under its name."""

    def run(
        config: ConfigPath = Path("pipeline.toml"),
        overrides: Overrides = [],  # noqa: B006 - typer reads the default; nobody changes it
        debug: Debug = False,
    ) -> None:
        with reported_errors(debug):
            settings = load(name, config, overrides)
            from pipeline.work import COMMANDS

            COMMANDS[name](settings)

    run.__name__ = name
    run.__doc__ = f"{summary}\n\nExample: repa-cache {name} --config pipeline.toml"
    return run


train = plain_command("train", "Train from the cache, or go on from the last checkpoint.")
run = plain_command(
    "run", "Build, train, sample and evaluate; every part goes on where it stopped."
)
