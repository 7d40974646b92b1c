"""The commands that make a cache and check it."""

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    ChosenCache,
    ChosenConfig,
    ConfigPath,
    Debug,
    Overrides,
    load,
    load_for_cache,
)
from pipeline.exits import FAILED, ConfigError, reported_errors
from stages.packages import is_installed, needs


def build(
    rebuild: Annotated[
        list[str], typer.Option(metavar="NAME", help="Make an encoder or the VAE anew; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default; nobody changes it
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
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Encode the data set into the cache, making only what is missing.

    Start it in several places at once, and they share the work.

    Example: repa-cache build --workers 8
    """
    with reported_errors(debug):
        part = _parse_shards(shards)
        is_clustered = workers > 0 or scheduler is not None
        if workers and scheduler:
            raise ConfigError("--workers starts a cluster, --scheduler uses one: give either.")
        if dashboard and not is_clustered:
            raise ConfigError("--dashboard: only builds with --workers or --scheduler have one.")
        if dashboard and not is_installed("bokeh"):
            raise ConfigError(f"--dashboard: {needs('bokeh')}")
        settings = load("build", config, overrides)
        from pipeline.work import do_build
        from stages.encode.build_options import BuildOptions, Cluster

        options = BuildOptions(
            repair=repair,
            update=update,
            shards=part,
            cluster=Cluster(workers, scheduler, dashboard) if is_clustered else None,
        )
        do_build(settings, options, rebuild)


def _parse_shards(text: str) -> slice:
    """The shards meant by `A:B`, either of which may be left out."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise ConfigError(f"--shards {text}: expected A:B, as 0:100, :100 or 100:.")
    start, stop = (int(number) if number else None for number in match.groups())
    return slice(start, stop)


def verify(
    cache: ChosenCache = None,
    fidelity: Annotated[
        int, typer.Option(metavar="ROWS", help="Also encode this many images again and compare.")
    ] = 0,
    config: ChosenConfig = None,
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Read the whole cache and list what is wrong with it, and how to fix it.

    A CACHE needs no configuration; --fidelity does, for images and networks.

    Example: repa-cache verify demo.zarr
    """
    with reported_errors(debug):
        if fidelity and cache is not None and config is None:
            raise ConfigError(
                f"--fidelity encodes images again, and {cache} does not tell where these and the "
                "weights of the networks are. Name the configuration with --config."
            )
        settings = load_for_cache("verify", cache, config, overrides)
        from pipeline.work import do_verify

        if not do_verify(settings, fidelity):
            raise typer.Exit(FAILED)


def bench(
    cache: ChosenCache = None,
    config: ChosenConfig = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default; nobody changes it
    debug: Debug = False,
) -> None:
    """Measure how fast batches can be read here, and how many GPUs that feeds.

    Of a CACHE all encoders are read, for a run with default settings.

    Example: repa-cache bench demo.zarr --set train.model=SiT-B/2
    """
    with reported_errors(debug):
        settings = load_for_cache("bench", cache, config, overrides)
        from pipeline.work import do_bench

        do_bench(settings, is_configured=cache is None or config is not None)
