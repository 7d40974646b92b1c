"""The command that shows what runs have come to."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigPath, Debug, Overrides, load
from pipeline.exits import reported_errors


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Folders of runs; default: train.run."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page; default: report.html, of one run in its folder, of several here.",
        ),
    ] = None,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006 - typer reads the default; nobody changes it
    debug: Debug = False,
) -> None:
    """Write one page on a run, or on several side by side, during and after training.

    Reads the folders of the runs only: with RUNs it needs neither configuration nor cache.

    Example: repa-cache report runs/depth-2 runs/depth-8 --out depths.html
    """
    with reported_errors(debug):
        chosen = runs or [load("report", config, overrides).train.run]
        from pipeline.report.report_page import write_report

        page, count = write_report(chosen, out)
        what = "1 run" if count == 1 else f"{count} runs"
        typer.echo(f"{page}: {what}, {page.stat().st_size / 1e6:.1f} MB; it needs no other file")
