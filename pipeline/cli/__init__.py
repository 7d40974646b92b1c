"""The commands: parse, validate, hand over.

Nothing here imports more than it takes to show help: each command imports what does the work once
its configuration is known to be good.
"""

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from pipeline.cli.analyzing import analyze
from pipeline.cli.caching import bench, build, verify
from pipeline.cli.describing import config
from pipeline.cli.drawing import evaluate, export, sample
from pipeline.cli.inspecting import KeysAfterRows, inspect
from pipeline.cli.plain import run, train
from pipeline.cli.planning import plan
from pipeline.cli.presets import init
from pipeline.cli.reporting import report


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
for command in (
    *(init, config, plan, build, inspect, verify, bench),
    *(train, sample, evaluate, run, report, export),
):
    app.command(cls=KeysAfterRows if command is inspect else None)(command)
app.add_typer(analyze)
