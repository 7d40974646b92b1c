"""`repa-cache plan`: what a configuration will cost and gain."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import FAILED, ConfigError
from pipeline.launchers import checked_world

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan.outline import Plan
    from pipeline.sweep.sweep_plan import SweepPlan

GPUS = 8


def plan(
    config: "Config",
    images: int | None = None,
    gpus: int = GPUS,
    *,
    is_measured: bool = False,
    card_bytes: float | None = None,
    prices: Sequence[str] = (),
) -> "Plan":
    """What a cache and its run will cost and gain.

    images: how many there will be, if they are not to be counted; gpus: that will encode and
    train; is_measured: whether networks and disk are measured here; card_bytes: memory of a GPU,
    by default 80 GB, or that of the GPU here if it is measured; prices: of a store, as after
    --price.
    """
    from pipeline.plan.outline import make_plan
    from pipeline.plan.store_use import Prices

    return make_plan(
        config,
        images,
        gpus,
        is_measured=is_measured,
        card_bytes=card_bytes,
        prices=Prices.parse(prices),
    )


def plan_sweep(
    path: Path, images: int | None = None, gpus: int = GPUS, *, is_measured: bool = False
) -> "SweepPlan":
    """What the cache and the runs of a sweep.toml will cost and gain, likewise."""
    from pipeline.sweep.sweep_file import load_sweep
    from pipeline.sweep.sweep_plan import plan_sweep

    return plan_sweep(load_sweep(path), images, gpus=gpus, is_measured=is_measured)


def show_sweep(made: "SweepPlan", *, as_json: bool = False) -> None:
    """Print the plan of a sweep. Raises typer.Exit if the columns of its runs cannot fit."""
    from pipeline.sweep.sweep_plan import exported_sweep, show_sweep_plan

    if as_json:
        typer.echo(json.dumps(exported_sweep(made), indent=2))
    else:
        show_sweep_plan(made)
    if not made.whole.space.fits:
        raise typer.Exit(FAILED)


def command(
    images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many there will be, instead of counting them."),
    ] = None,
    gpus: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many will encode and train.")
    ] = GPUS,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            min=1, metavar="GB", help="Of each of them; by default 80, measured that of this one."
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure networks and disk here; takes up to a minute and 1 GB."
        ),
    ] = False,
    prices: Annotated[
        list[str],
        typer.Option(
            "--price",
            metavar="NAME=NUMBER",
            help="Of a store: `stored` a GB and month, `out` a GB read, `puts` and `gets` of 1,000 "
            "requests; repeatable.",
        ),
    ] = [],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: bytes, seconds, per second.")
    ] = False,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="SWEEP", help="Of all runs of a sweep.toml, instead of one."),
    ] = None,
    config: arguments.ConfigPath = arguments.DEFAULT_CONFIG,
    overrides: arguments.Overrides = [],
) -> None:
    """Say what a cache will cost and what it will gain, before anything runs.

    Needs neither weights nor, with --images, the data set. Exit code 1 if it cannot fit.

    Example: repa-cache plan --images 1281167
    """
    if sweep is not None:
        if overrides:
            raise ConfigError("--set: a sweep has its settings in its file (`set`).")
        checked_world("plan")
        show_sweep(plan_sweep(sweep, images, gpus, is_measured=measure), as_json=as_json)
        return
    made = plan(
        arguments.load("plan", config, overrides),
        images,
        gpus,
        is_measured=measure,
        card_bytes=None if gpu_memory is None else gpu_memory * 1e9,
        prices=prices,
    )
    if as_json:
        from pipeline.plan.plan_views import exported

        typer.echo(json.dumps(exported(made), indent=2))
    else:
        from pipeline.plan.plan_views import show_plan

        show_plan(made)
    if not made.space.fits:
        raise typer.Exit(FAILED)
