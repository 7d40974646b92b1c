"""The commands that use a run's weights."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    DEFAULT_CONFIG,
    CheckpointStep,
    ChosenConfig,
    ChosenRun,
    Debug,
    Overrides,
    WhichWeights,
    load,
    load_for_run,
    load_for_samples,
    set_path,
)
from pipeline.exits import ConfigError, reported_errors
from stages.weights.export_options import ExportOptions, Layout, Weights


def sample(
    run: ChosenRun = None,
    step: CheckpointStep = None,
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
            "noise in those of sit and sit-no-sigma."
        ),
    ] = None,
    weights: WhichWeights = Weights.EMA,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; default: RUN/samples/CHECKPOINT."),
    ] = None,
    config: ChosenConfig = None,
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Draw images with a run's weights or published ones, drawing only those that are missing.

    Of a RUN the folder does: its own configuration is used, with what --set changes of it.

    Example: repa-cache sample runs/demo --set sample.steps=50
    """
    with reported_errors(debug):
        if official is not None and step is not None:
            raise ConfigError("--checkpoint is of a run, --official of none: give either.")
        if layout is not None and official is None:
            raise ConfigError("--layout: of which file? Name it with --official.")
        settings = load_for_run("sample", run, config, overrides)
        from pipeline.work import do_sample
        from stages.sample.sample_options import SampleOptions

        do_sample(settings, SampleOptions(official, layout, step, weights, out))


def evaluate(
    samples: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|SAMPLES",
            help="Runs, of which the newest checkpoint's samples are meant, folders of images or "
            ".npz files; default: train.run.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="REF", help="A .npz or a folder of images; default: the cached set."),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the reference's statistics, a .npz."),
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A local file instead of the download.")
    ] = None,
    config: ChosenConfig = None,
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Compare samples with a reference: FID, sFID, IS, precision, recall, KID and others.

    Several are judged alike, as the configuration of the first run says, with the reference
    measured once. What was measured before is kept.

    Example: repa-cache evaluate runs/a runs/b --reference VIRTUAL_imagenet256_labeled.npz
    """
    with reported_errors(debug):
        for key, path in (("reference", reference), ("inception_weights", inception_weights)):
            if path is not None:
                if not path.exists():
                    raise ConfigError(f"evaluate.{key}: there is no file {path}")
                overrides = [*overrides, set_path(f"evaluate.{key}", path)]
        settings, targets = load_for_samples(samples or [], config, overrides)
        from pipeline.judging import do_evaluate
        from stages.sample.sample_options import EvaluateOptions

        do_evaluate(settings, EvaluateOptions(save_statistics), targets)


def export(
    run: ChosenRun = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The .pt or .safetensors to write.")
    ] = None,
    step: CheckpointStep = None,
    weights: WhichWeights = Weights.EMA,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Whose code is to load it, in its direction of time: 0 is data for repa, noise "
            "for sit and sit-no-sigma. Default: repa for SiT, dit for DiT."
        ),
    ] = None,
    config: ChosenConfig = None,
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write a run's weights as a file that the published REPA, SiT or DiT code loads.

    With RUN it needs no configuration.

    Example: repa-cache export runs/demo SiT-XL-2.pt --checkpoint 400000
    """
    if run is None:
        raise typer.BadParameter("Name the file to write: OUT, or RUN and OUT.")
    # A single path is OUT, of the run that a configuration names.
    run, out = (None, run) if out is None else (run, out)
    with reported_errors(debug):
        if run is not None and (config or overrides):
            raise ConfigError(f"{run} tells all that is exported: no --config and no --set.")
        source = run or load("export", config or DEFAULT_CONFIG, overrides).train.run
        from pipeline.work import do_export

        do_export(source, ExportOptions(out, step, weights, layout))
