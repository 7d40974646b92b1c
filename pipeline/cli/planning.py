"""The command that comes before all others."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigPath, Debug, Overrides, load
from pipeline.exits import FAILED, reported_errors


def plan(
    images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many there will be, instead of counting them."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many will train.")] = 8,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure networks and disk here; takes up to a minute and 1 GB."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: bytes, seconds, per second.")
    ] = False,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006 - typer reads the default; nobody changes it
    debug: Debug = False,
) -> None:
    """Say what a cache will cost and what it will gain, before anything runs.

    Needs neither weights nor, with --images, the data set. Exit code 1 if it cannot fit.

    Example: repa-cache plan --images 1281167
    """
    with reported_errors(debug):
        settings = load("plan", config, overrides)
        from pipeline.work import do_plan

        if not do_plan(settings, images, gpus, is_measured=measure, as_json=as_json):
            raise typer.Exit(FAILED)
