"""`repa-cache build`: images into a cache."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError
from stages.encode.build_options import BuildOptions, Cluster
from stages.packages import is_installed, needs

if TYPE_CHECKING:
    from cache.layout import Column
    from cache.stores.places import Place
    from pipeline.config import Config
    from stages.encode.build import BuildSummary

# Of a long list of images.
SHOWN_IMAGES = 50


def build(
    config: "Config", options: BuildOptions | None = None, rebuild: Sequence[str] = ()
) -> "BuildSummary":
    """Fill the cache. rebuild: names of encoders, or of the VAE, to make anew."""
    from stages.encode.build import build, find_columns
    from stages.placement import find_device

    columns = find_columns(config.encode, rebuild)
    options = replace(options or BuildOptions(), rebuild=columns)
    return build(config.encode, find_device(config.build.device), options)


def show(made: "BuildSummary") -> None:
    """Print what a build did, and what the cache holds."""
    from pipeline.tables import show_faults

    done = []
    if 0 < made.added < made.rows:
        done.append(f"{made.added:,} images added")
    for counts, seconds, unit in (
        (made.texts.counts, made.texts.seconds, "texts"),
        (made.counts, made.seconds, "images"),
    ):
        if counts.shards:
            speed = f"{counts.images / seconds:,.1f} {unit}/s"
            done.append(f"{counts.shards} shards made in {seconds:,.0f} s ({speed})")
    if made.missing:
        done.append(f"{made.missing} shards left to make")
    _show_columns(made.path, made.columns)
    typer.echo(f"{made.path}: {made.rows:,} rows; {'; '.join(done) or 'nothing was missing'}")
    _show_invalid(made.invalid)
    if made.damaged:
        typer.echo("still damaged, and in no column of this configuration:")
        show_faults(made.damaged)


def _show_columns(path: "Place", columns: "Sequence[Column]") -> None:
    """Print what a cache holds of some columns."""
    from rich.filesize import decimal

    from cache.layout import VALID
    from pipeline.tables import show_table

    rows = []
    for column in columns:
        for array in (a for a in column.arrays if a != VALID):
            row = " x ".join(map(str, array.row_shape))
            paths = [column.shard_path(array, shard) for shard in range(column.shards)]
            sizes = [path.stat().st_size for path in paths if path.exists()]
            shards = f"{len(sizes):,} of {column.shards:,}"
            name = f"{str(column.folder).removeprefix(f'{path}/')}/{array.name}"
            rows.append((name, array.dtype, row, shards, decimal(sum(sizes))))
    show_table(("array", "type", "row", "shards", "on disk"), rows)


def _show_invalid(invalid: Mapping[str, str]) -> None:
    """Print which images could not be decoded, and why."""
    if not invalid:
        return
    images = "1 image" if len(invalid) == 1 else f"{len(invalid):,} images"
    typer.echo(f"{images} could not be decoded. Training never draws the rows of these:")
    for key, reason in islice(invalid.items(), SHOWN_IMAGES):
        typer.echo(f"  {key}: {reason}")
    if len(invalid) > SHOWN_IMAGES:
        typer.echo(f"  and {len(invalid) - SHOWN_IMAGES:,} more")


def command(
    rebuild: Annotated[
        list[str], typer.Option(metavar="NAME", help="Make an encoder or the VAE anew; repeatable.")
    ] = [],
    repair: Annotated[
        bool, typer.Option("--repair", help="Read everything, and make again what is damaged.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Take over images and labels that changed.")
    ] = False,
    shards: Annotated[
        str, typer.Option(metavar="A:B", help="Make shards A to B - 1 only, of those missing.")
    ] = ":",
    workers: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Processes that encode: as many as there are GPUs."),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have the workers of this Dask cluster encode."),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Print the address of Dask's dashboard.")
    ] = False,
    break_lock: Annotated[
        bool,
        typer.Option("--break-lock", help="Take over the lock of a build in a store that died."),
    ] = False,
    config: arguments.ConfigPath = arguments.DEFAULT_CONFIG,
    overrides: arguments.Overrides = [],
) -> None:
    """Encode the data set into the cache, making only what is missing.

    Start it in several places at once, and they share the work; in a store, one at a time.

    Example: repa-cache build --workers 8
    """
    options = BuildOptions(
        repair=repair,
        update=update,
        shards=_parse_shards(shards),
        cluster=cluster_of(workers, scheduler, has_dashboard=dashboard),
        break_lock=break_lock,
    )
    show(build(arguments.load("build", config, overrides), options, rebuild))


def cluster_of(workers: int, scheduler: str | None, *, has_dashboard: bool) -> Cluster | None:
    """The cluster that is asked for, if one is. Raises ConfigError if it cannot be."""
    if workers and scheduler:
        raise ConfigError("--workers starts a cluster, --scheduler uses one: give either.")
    if not workers and scheduler is None:
        if has_dashboard:
            raise ConfigError("--dashboard: only builds with --workers or --scheduler have one.")
        return None
    if has_dashboard and not is_installed("bokeh"):
        raise ConfigError(f"--dashboard: {needs('bokeh')}")
    return Cluster(workers, scheduler, has_dashboard)


def _parse_shards(text: str) -> slice:
    """The shards meant by `A:B`, either of which may be left out."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise ConfigError("expected A:B, as 0:100, :100 or 100:.", where=f"--shards {text}")
    start, stop = (int(number) if number else None for number in match.groups())
    return slice(start, stop)
