"""The commands that use a run's weights."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import CheckpointStep, ConfigPath, Debug, Overrides, WhichWeights, load
from pipeline.exits import ConfigError, reported_errors
from stages.train.options import ExportOptions, Layout, Weights


def sample(
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
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Draw images with a run's weights or published ones, making only those that lack.

    Example: repa-cache sample --official SiT-XL-2-256.pt --set train.model=SiT-XL/2
    """
    with reported_errors(debug):
        if official is not None and step is not None:
            raise ConfigError("--checkpoint is of a run, --official of none: give either.")
        if layout is not None and official is None:
            raise ConfigError("--layout: of which file? Name it with --official.")
        settings = load("sample", config, overrides)
        from pipeline.work import do_sample
        from stages.sample.options import SampleOptions

        do_sample(settings, SampleOptions(official, layout, step, weights, out))


def evaluate(
    samples: Annotated[
        Path | None,
        typer.Argument(help="A folder of images, or a .npz; default: of the newest checkpoint."),
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
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Compare samples with a reference: FID, sFID, IS, precision, recall, KID and others.

    Example: repa-cache evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz
    """
    with reported_errors(debug):
        from stages.settings import literal

        for key, path in (("reference", reference), ("inception_weights", inception_weights)):
            if path is not None:
                value = json.dumps(literal(path))
                overrides = [*overrides, f"evaluate.{key}={value}"]
        settings = load("evaluate", config, overrides)
        from pipeline.work import do_evaluate
        from stages.sample.options import EvaluateOptions

        do_evaluate(settings, EvaluateOptions(samples, save_statistics))


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .pt or .safetensors to write.")],
    step: CheckpointStep = None,
    weights: WhichWeights = Weights.EMA,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Whose code is to load it, in its direction of time: 0 is data for repa, noise "
            "for sit and sit-no-sigma. Default: repa for SiT, dit for DiT."
        ),
    ] = None,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write a run's weights as a file that the published REPA, SiT or DiT code loads.

    Example: repa-cache export SiT-XL-2.pt --checkpoint 400000
    """
    with reported_errors(debug):
        settings = load("export", config, overrides)
        from pipeline.work import do_export

        do_export(settings, ExportOptions(out, step, weights, layout))
