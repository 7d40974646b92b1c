"""`repa-cache verify`: whether every byte of a cache is what was written."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import FAILED, ConfigError

if TYPE_CHECKING:
    from cache.verify import Fault
    from pipeline.config import Config
    from stages.encode.measuring.fidelity import Fidelity


def verify(config: "Config") -> "list[Fault]":
    """All faults of the cache. Reads every byte of it once."""
    from cache.verify import find_all_faults
    from stages.progress import progress

    return find_all_faults(config.cache.path, config.build.decoding_threads(), progress)


def fidelity(config: "Config", rows: int) -> "list[Fidelity]":
    """How true stored tensors are to what the networks make of so many images again."""
    from stages.encode.measuring.fidelity import measure_fidelity
    from stages.placement import find_device

    return measure_fidelity(config.encode, rows, find_device(config.build.device))


def _show_fidelity(measured: "list[Fidelity]") -> None:
    """Print how true stored tensors are."""
    from pipeline.tables import show_table

    rows = []
    for one in measured:
        change = "" if one.loss_change is None else f"{one.loss_change:+.1e}"
        cosines = (f"{value:.6f}" for value in (one.mean, one.percentile1, one.minimum))
        rows.append((one.array, one.storage, f"{one.rows:,}", *cosines, f"{one.error:.1e}", change))
    cosine_titles = ("cosine: mean", "1st percentile", "minimum")
    titles = ("array", "storage", "rows", *cosine_titles, "relative error", "alignment loss")
    show_table(titles, rows)


def command(
    cache: arguments.ChosenCache = None,
    rows: Annotated[
        int,
        typer.Option(
            "--fidelity", metavar="ROWS", help="Also encode this many images again and compare."
        ),
    ] = 0,
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Read the whole cache and list what is wrong with it, and how to fix it.

    A CACHE needs no configuration; --fidelity does, for images and networks.

    Example: repa-cache verify demo.zarr
    """
    if rows and cache is not None and config is None:
        raise ConfigError(
            f"--fidelity encodes images again, and {cache} does not tell where these and the "
            "weights of the networks are",
            remedy="Name the configuration with --config.",
        )
    settings = arguments.load_for_cache("verify", cache, config, overrides)
    from pipeline.tables import show_faults

    if faults := verify(settings):
        show_faults(faults)
        raise typer.Exit(FAILED)
    typer.echo(f"{settings.cache.path}: complete, and every byte is what was written")
    if rows:
        _show_fidelity(fidelity(settings, rows))
