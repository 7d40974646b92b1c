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
    from stages.sample.prompts import TextSource
    from stages.sample.sampled_weights import SampleOptions

    options, train = options or SampleOptions(), config.train
    with placement(train.device) as place:
        source = TextSource(config.texts, config.cache.path)
        drawn = sample(config.sample, options, train, config.decoder, place, source)
    # Of weights from elsewhere, there need not be a run here.
    if place.is_main and is_run(train.run):
        write_report([train.run], out=None)
    return drawn


def show(drawn: "Drawn") -> None:
    """Print where samples are, and how many were drawn."""
    samples = drawn.samples
    what = f"{drawn.images:,} drawn" if drawn.images else "nothing was missing"
    typer.echo(f"{samples.folder}: {samples.images:,} images; {what}")


def _lines(path: Path | None) -> list[str]:
    """The captions in a file. Raises ConfigError if there are none."""
    if path is None:
        return []
    try:
        found = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"it cannot be read: {error}", where=f"--prompts {path}") from error
    if not found:
        raise ConfigError("there is no caption in it", where=f"--prompts {path}")
    return found


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
    prompt: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="Draw images of this caption instead of configured ones; repeatable.",
        ),
    ] = [],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw images of these captions, one a line.")
    ] = None,
    each: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images of each caption that is given so.")
    ] = 4,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; default: RUN/samples/CHECKPOINT."),
    ] = None,
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Draw images with a run's weights or published ones, drawing only those that are missing.

    Of a RUN the folder does: its own configuration is used, with what --set changes of it.

    A model that reads captions draws those of its cache, or the prompts that it is given.

    Example: repa-cache sample runs/demo --set sample.steps=50
    """
    if official is not None and step is not None:
        raise ConfigError("--checkpoint is of a run, --official of none: give either.")
    if layout is not None and official is None:
        raise ConfigError("--layout: of which file? Name it with --official.")
    texts = (*prompt, *_lines(prompts))
    settings = arguments.load_for_run("sample", run, config, overrides)
    from stages.sample.sampled_weights import SampleOptions

    if texts:
        settings = settings.drawing(texts, each)
    drawn = sample(settings, SampleOptions(official, layout, step, weights, out, texts))
    if rank() == 0:
        show(drawn)
