"""`repa-cache export`: weights for published code."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError
from stages.weights.export_options import ExportOptions, Layout, Weights

if TYPE_CHECKING:
    from stages.weights.export import Exported


def export(run: Path, options: ExportOptions) -> "Exported":
    """Write the weights of a run, which needs no configuration, as a file for published code."""
    from stages.weights.export import export

    return export(run, options)


def command(
    run: arguments.ChosenRun = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The .pt or .safetensors to write.")
    ] = None,
    step: arguments.CheckpointStep = None,
    weights: arguments.WhichWeights = Weights.EMA,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="Whose code is to load it, in its direction of time: 0 is data for repa, noise "
            "for sit, sit-no-sigma and redi. Default: repa for SiT, redi for one with components, "
            "dit for DiT."
        ),
    ] = None,
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Write a run's weights as a file that the published REPA, SiT, ReDi or DiT code loads.

    With RUN it needs no configuration.

    Example: repa-cache export runs/demo SiT-XL-2.pt --checkpoint 400000
    """
    if run is None:
        raise typer.BadParameter("Name the file to write: OUT, or RUN and OUT.")
    # A single path is OUT, of the run that a configuration names.
    run, out = (None, run) if out is None else (run, out)
    if run is not None and (config or overrides):
        raise ConfigError(f"{run} tells all that is exported: no --config and no --set.")
    source = (
        run or arguments.load("export", config or arguments.DEFAULT_CONFIG, overrides).train.run
    )
    made = export(source, ExportOptions(out, step, weights, layout))
    typer.echo(
        f"{made.path}: {weights} of step {made.step:,} of {made.model}, layout "
        f"{made.layout}, {made.tensors:,} tensors of {made.parameters / 1e6:,.1f} M "
        f"parameters; for {made.loaded_by}"
    )
