"""The program `repa-cache`: a module for each command.

Each has `command`, with the options and what is said at the end, and a function of the command's
name that does the work for a configuration and says nothing but its progress. Nothing here imports
more than it takes to show help: what does the work is imported once the configuration is known to
be good.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from pipeline.commands import (
    analyze,
    bench,
    build,
    config,
    copy,
    evaluate,
    export,
    init,
    inspect,
    plan,
    report,
    run,
    sample,
    sweep,
    train,
    verify,
)
from pipeline.commands.arguments import ManyWords
from pipeline.exits import reporting


class Program(TyperGroup):
    """All commands, on whatever terminal or file they write to."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command that the arguments name; what the output cannot show is escaped."""
        # Whoever started the program may have closed them.
        sys.stdout = sys.stdout or _nowhere()
        sys.stderr = sys.stderr or _nowhere()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **extra)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


app = typer.Typer(
    cls=Program,
    help="Build once, train many: cached latents and encoder features for REPA training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        typer.echo(f"repa-cache {version('repa-cache')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What can be said before a command."""


# In the order in which they are needed, which is that of the help.
for module in (
    *(init, config, plan, build, inspect, verify, copy, bench),
    *(train, sample, evaluate, run, sweep, report, export),
):
    name = module.__name__.rpartition(".")[2]
    app.command(name, cls=ManyWords if module in (inspect, copy) else None)(
        reporting(module.command)
    )
app.add_typer(analyze.app)
