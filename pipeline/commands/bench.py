"""`repa-cache bench`: how fast batches of a cache can be read here."""

from typing import TYPE_CHECKING

import typer

from pipeline.commands import arguments

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.plan.reading_speed import Reading


def bench(config: "Config", *, is_configured: bool = True) -> "Reading":
    """How many images a second can be read here, and how many one GPU needs.

    is_configured: whether the cache has to be what the configuration would build.
    """
    from pipeline.plan.reading_speed import measure_reading
    from pipeline.requirements import check_columns

    if is_configured:
        check_columns(config)
    return measure_reading(config.train, config.tensors)


def command(
    cache: arguments.ChosenCache = None,
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Measure how fast batches can be read here, and how many GPUs that feeds.

    Of a CACHE all encoders are read, for a run with default settings.

    Example: repa-cache bench demo.zarr --set train.model=SiT-B/2
    """
    settings = arguments.load_for_cache("bench", cache, config, overrides)
    _show(bench(settings, is_configured=cache is None or config is not None))


def _show(reading: "Reading") -> None:
    from pipeline.plan.reading_speed import GPU_FLOPS

    for name, rate in (("cold", reading.cold), ("warm", reading.warm)):
        typer.echo(
            f"{name}: {rate:,.0f} images/s, {rate * reading.image_bytes / 1e9:.2f} GB/s, "
            f"{rate / reading.batch_size:,.1f} steps/s of {reading.batch_size} images, "
            f"feeds {rate / reading.needed:.2g} GPUs"
        )
    typer.echo(
        f"A GPU that computes {GPU_FLOPS / 1e12:.0f} TFLOP/s (an H100 at 40 % of its peak) trains "
        f"{reading.model} on {reading.needed:,.0f} images/s."
    )
