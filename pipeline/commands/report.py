"""`repa-cache report`: what runs have come to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import arguments


def report(runs: Sequence[Path], out: Path | None = None) -> tuple[Path, int]:
    """Write the page of runs, which need no configuration; returns it, and the number of runs.

    out: by default in the folder of a single run, or here.
    """
    from pipeline.report.report_page import write_report

    return write_report(runs, out)


def command(
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
    config: arguments.ConfigPath = arguments.DEFAULT_CONFIG,
    overrides: arguments.Overrides = [],
) -> None:
    """Write one page on a run, or on several side by side, during and after training.

    Reads the folders of the runs only: with RUNs it needs neither configuration nor cache.

    Example: repa-cache report runs/depth-2 runs/depth-8 --out depths.html
    """
    page, count = report(runs or [arguments.load("report", config, overrides).train.run], out)
    what = "1 run" if count == 1 else f"{count} runs"
    typer.echo(f"{page}: {what}, {page.stat().st_size / 1e6:.1f} MB; it needs no other file")
