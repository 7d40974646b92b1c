"""`repa-cache copy`: a cache, or columns of it, between disks and stores."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError

if TYPE_CHECKING:
    from cache.copies.copy_plan import CopiedColumn


def copy(
    source: arguments.Place | str,
    target: arguments.Place | str,
    columns: Sequence[str] | None = None,
    *,
    is_dry: bool = False,
    break_lock: bool = False,
) -> "tuple[CopiedColumn, ...]":
    """Copy to the target what it lacks of a cache, and say what that was of each column.

    source, target: paths or addresses; columns: which ones, or encoders, by default all; is_dry:
    whether only to say what would be done; break_lock: whether to take over the lock of a build or
    copy into a store that gives no sign of life.
    """
    from cache.copies.copying import copy_cache, preview
    from cache.stores.places import place_of
    from stages.progress import progress, say

    here, there = place_of(str(source)), place_of(str(target))
    if is_dry:
        return preview(here, there, columns)
    return copy_cache(here, there, columns, progress, say, break_lock=break_lock)


def command(
    source: Annotated[
        arguments.Place,
        typer.Argument(
            metavar="FROM",
            parser=arguments.place_typed,
            help="A cache, as demo.zarr or s3://bucket/demo.zarr.",
        ),
    ],
    target: Annotated[
        arguments.Place,
        typer.Argument(
            metavar="TO", parser=arguments.place_typed, help="Where to: likewise, with its name."
        ),
    ],
    columns: Annotated[
        list[str],
        typer.Option(metavar="NAME...", help="Only these: encoders, VAEs, columns; default: all."),
    ] = [],
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Only the columns that this run is trained on."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be copied, and copy nothing.")
    ] = False,
    break_lock: Annotated[
        bool,
        typer.Option("--break-lock", help="Take over the lock of a copy into a store that died."),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Only the columns that a run of this configuration reads."),
    ] = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Copy a cache, or some columns of it, between disks and stores.

    Only what is missing is copied, and every byte is checked. Start it again to go on, or to
    bring a copy up to date.

    Example: repa-cache copy imagenet256.zarr s3://bucket/imagenet256.zarr
    """
    started = time.monotonic()
    chosen = _chosen(columns, run, config, overrides)
    made = copy(source, target, chosen, is_dry=dry_run, break_lock=break_lock)
    _show(made, target, None if dry_run else time.monotonic() - started)


def _chosen(
    columns: Sequence[str], run: Path | None, config: Path | None, overrides: list[str]
) -> list[str] | None:
    """The columns that options name; None for all of them."""
    if columns and (run or config):
        raise ConfigError("--columns names what --run and --config would tell: give either.")
    if run is None and config is None:
        if overrides:
            raise ConfigError("--set: of which configuration? Name it with --config or --run.")
        return list(columns) or None
    settings = arguments.load_for_run("copy", run, config, overrides)
    from pipeline.requirements import used_columns

    return used_columns(settings)


def _show(made: "Sequence[CopiedColumn]", target: arguments.Place, seconds: float | None) -> None:
    """Print what was copied in some seconds, or would be."""
    from rich.filesize import decimal

    from pipeline.tables import duration, show_table

    rows = [
        (one.name, f"{one.copied:,} of {one.shards:,}", decimal(one.copied_bytes), f"{one.there:,}")
        for one in made
    ]
    verb = "to copy" if seconds is None else "copied"
    show_table(("column", f"shards {verb}", "bytes", "there already"), rows)
    shards, size = sum(one.copied for one in made), sum(one.copied_bytes for one in made)
    if not shards:
        typer.echo(f"{target}: nothing was missing")
    elif seconds is None:
        typer.echo(f"{target}: {shards:,} shards to copy ({decimal(size)})")
    else:
        pace = f"{decimal(size)} in {duration(seconds)}, {decimal(round(size / seconds))}/s"
        typer.echo(f"{target}: {shards:,} shards copied ({pace})")
    if unfinished := [f"{one.name} ({one.unfinished:,} shards)" for one in made if one.unfinished]:
        typer.echo(
            f"Not finished where it was copied from: {', '.join(unfinished)}. Run this again "
            "once they are built."
        )
