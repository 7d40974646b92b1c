"""`repa-cache train`: a cache into weights."""

import json
from typing import TYPE_CHECKING

import typer

from cache.files import write_atomically
from pipeline.commands import arguments
from stages.processes import rank

if TYPE_CHECKING:
    from pipeline.config import Config
    from stages.train.loop import TrainSummary


def train(config: "Config") -> "TrainSummary":
    """Train, or go on training, and write the page of the run."""
    from pipeline.process_group import placement
    from pipeline.report.report_page import write_own_report
    from pipeline.requirements import check_columns, own_scaling
    from stages.sample.generate import GridDrawer
    from stages.sample.prompts import TextSource
    from stages.train.loop import train

    settings = config.train
    check_columns(config)
    with placement(settings.device) as place:
        is_drawing = settings.grid_every > 0 and place.is_main
        draw = None
        if is_drawing:
            source, scaling = TextSource(config.texts, config.cache.path), own_scaling(config)
            draw = GridDrawer(
                config.sample, settings, config.decoder, place.device, source, scaling
            )
        reached = train(settings, config.tensors, place, draw, lambda: _keep(config))
    if place.is_main:
        write_own_report(settings.run)
    return reached


def _keep(config: "Config") -> None:
    """Write the configuration into the folder of the run."""
    from stages.weights.run_folder import config_path

    content = json.dumps(config.model_dump(mode="json"), indent=2)
    write_atomically(config_path(config.train.run), content.encode())


def show(config: "Config", reached: "TrainSummary") -> None:
    """Print how far training came."""
    settings, made = config.train, reached.step - reached.start
    speed = f", {made / reached.seconds:,.1f} steps/s" if made else ""
    typer.echo(
        f"{settings.run}: step {reached.step:,} of {settings.model} "
        f"({reached.parameters / 1e6:,.1f} M parameters); {made:,} steps made{speed}"
    )


def command(
    config: arguments.ConfigPath = arguments.DEFAULT_CONFIG,
    overrides: arguments.Overrides = [],
) -> None:
    """Train from the cache, or go on from the last checkpoint.

    Example: repa-cache train --config pipeline.toml
    """
    settings = arguments.load("train", config, overrides)
    reached = train(settings)
    if rank() == 0:
        show(settings, reached)
