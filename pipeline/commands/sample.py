"""`repa-cache sample`: weights into images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError
from stages.processes import rank
from stages.weights.export_options import Layout, Weights

if TYPE_CHECKING:
    from pipeline.config import Config
    from stages.sample.generate import Drawn
    from stages.sample.sampled_weights import SampleOptions


def sample(config: "Config", options: "SampleOptions | None" = None) -> "Drawn":
    """Draw the images that lack, and write the page of the run anew."""
    from pipeline.process_group import placement
    from pipeline.report.records import is_run
    from pipeline.report.report_page import write_report
    from stages.sample.generate import sample
    from stages.sample.sampled_weights import SampleOptions

    options, train = options or SampleOptions(), config.train
    with placement(train.device) as place:
        drawn = sample(config.sample, options, train, config.decoder, place)
    # Of weights from elsewhere, there need not be a run here.
    if place.is_main and is_run(train.run):
        write_report([train.run], out=None)
    return drawn


def show(drawn: "Drawn") -> None:
    """Print where samples are, and how many were drawn."""
    samples = drawn.samples
    what = f"{drawn.images:,} drawn" if drawn.images else "nothing was missing"
    typer.echo(f"{samples.folder}: {samples.images:,} images; {what}")


def command(
    run: arguments.ChosenRun = None,
    step: arguments.CheckpointStep = None,
    official: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Published weights of train.model, instead of a checkpoint."
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Whose code the FILE is of, if it does not tell: time 0 is data in repa's files, "
            "noise in those of sit, sit-no-sigma and redi."
        ),
    ] = None,
    weights: arguments.WhichWeights = Weights.EMA,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; default: RUN/samples/CHECKPOINT."),
    ] = None,
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Draw images with a run's weights or published ones, drawing only those that are missing.

    Of a RUN the folder does: its own configuration is used, with what --set changes of it.

    Example: repa-cache sample runs/demo --set sample.steps=50
    """
    if official is not None and step is not None:
        raise ConfigError("--checkpoint is of a run, --official of none: give either.")
    if layout is not None and official is None:
        raise ConfigError("--layout: of which file? Name it with --official.")
    settings = arguments.load_for_run("sample", run, config, overrides)
    from stages.sample.sampled_weights import SampleOptions

    drawn = sample(settings, SampleOptions(official, layout, step, weights, out))
    if rank() == 0:
        show(drawn)
