"""`repa-cache analyze`: a run's hidden states and losses, and a cache's encoders."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.analysis import analyses
from pipeline.commands import arguments
from pipeline.exits import ConfigError, reporting
from stages.analyze import analysis_options
from stages.weights.export_options import Weights

app = typer.Typer(
    name="analyze",
    help=(
        "Look into a run's hidden states and losses, or compare a cache's encoders; trains "
        "nothing.\n\n"
        "Example: repa-cache analyze encoders demo.zarr"
    ),
    no_args_is_help=True,
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, as runs/demo.")]
Moved = Annotated[
    arguments.Place | None,
    typer.Option(
        "--cache",
        metavar="PATH",
        parser=arguments.place_typed,
        help="Where the cache is, a path or an address; default: as in the run.",
    ),
]
Encoders = Annotated[
    str, typer.Option(metavar="A,B", help="Cached encoders to compare with; default: all.")
]
Rows = Annotated[int, typer.Option(min=2, metavar="N", help="Images, at most.")]
Levels = Annotated[str, typer.Option(metavar="A,B", help="Levels of noise, from 0 to 1.")]
Blocks = Annotated[str, typer.Option(metavar="A,B", help="Blocks, from 1; default: all.")]
Conditional = Annotated[
    bool, typer.Option("--conditional", help="Tell the model each image's label, not none.")
]
HeldOut = Annotated[
    float, typer.Option(min=0.01, max=0.99, metavar="SHARE", help="Of images that judge a probe.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Of training a probe.")]
Seed = Annotated[int, typer.Option(min=0, help="Of noise, of splits and of the order of images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass of the model.")]
Device = Annotated[str, typer.Option(help="As cuda:1 or cpu; default: the first accelerator.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Where to write; default: RUN/analysis.")
]
DEFAULT_LEVELS = ",".join(map(str, analysis_options.LEVELS))


@app.command("cknna")
@reporting
def cknna_command(
    run: RunFolder,
    step: arguments.CheckpointStep = None,
    weights: arguments.WhichWeights = Weights.EMA,
    cache: Moved = None,
    encoders: Encoders = "",
    rows: Rows = analysis_options.ROWS,
    levels: Levels = DEFAULT_LEVELS,
    blocks: Blocks = "",
    conditional: Conditional = False,
    neighbours: Annotated[
        int, typer.Option(min=1, metavar="K", help="Nearest neighbours of each image.")
    ] = analysis_options.NEIGHBOURS,
    raw: Annotated[
        bool, typer.Option("--raw", help="Features as they are, not at unit length.")
    ] = False,
    seed: Seed = 0,
    batch_size: BatchSize = analysis_options.StateOptions.batch_size,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Compare hidden states of every block and level of noise with the cached encoders.

    Example: repa-cache analyze cknna runs/demo --levels 0.3,0.7
    """
    states = analysis_options.StateOptions(
        *(step, weights, cache, rows, _levels(levels), _blocks(blocks)),
        *(conditional, seed, batch_size, device),
    )
    how = analysis_options.AlignmentOptions(neighbours, raw)
    analyses.cknna(run, states, how, _names(encoders), out).show()


@app.command("probe")
@reporting
def probe_command(
    run: RunFolder,
    step: arguments.CheckpointStep = None,
    weights: arguments.WhichWeights = Weights.EMA,
    cache: Moved = None,
    encoders: Encoders = "",
    rows: Rows = analysis_options.ROWS,
    levels: Levels = DEFAULT_LEVELS,
    blocks: Blocks = "",
    conditional: Conditional = False,
    held_out: HeldOut = analysis_options.HELD_OUT,
    epochs: Epochs = analysis_options.EPOCHS,
    seed: Seed = 0,
    batch_size: BatchSize = analysis_options.StateOptions.batch_size,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Train linear probes on hidden states of every block, to name the images' classes.

    Example: repa-cache analyze probe runs/demo --rows 50000
    """
    states = analysis_options.StateOptions(
        *(step, weights, cache, rows, _levels(levels), _blocks(blocks)),
        *(conditional, seed, batch_size, device),
    )
    how = analysis_options.ProbeOptions(held_out=held_out, epochs=epochs, seed=seed)
    analyses.probe(run, states, how, _names(encoders), out).show()


@app.command("losses")
@reporting
def losses_command(
    run: RunFolder,
    step: arguments.CheckpointStep = None,
    weights: arguments.WhichWeights = Weights.EMA,
    cache: Moved = None,
    rows: Rows = analysis_options.ROWS,
    levels: Levels = DEFAULT_LEVELS,
    conditional: Annotated[
        bool,
        typer.Option("--conditional/--unconditional", help="Tell the model each image's label."),
    ] = True,
    seed: Seed = 0,
    batch_size: BatchSize = analysis_options.StateOptions.batch_size,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Measure the denoising loss at levels of noise, best on a cache of images held out.

    Example: repa-cache analyze losses runs/demo --cache held-out.zarr
    """
    states = analysis_options.StateOptions(
        *(step, weights, cache, rows, _levels(levels), ()),
        *(conditional, seed, batch_size, device),
    )
    analyses.losses(run, states, out).show()


@app.command("encoders")
@reporting
def encoders_command(
    cache: Annotated[
        arguments.Place,
        typer.Argument(
            metavar="CACHE",
            parser=arguments.place_typed,
            help="A cache, as demo.zarr or s3://bucket/demo.zarr.",
        ),
    ],
    encoders: Encoders = "",
    rows: Rows = analysis_options.ROWS,
    held_out: HeldOut = analysis_options.HELD_OUT,
    epochs: Epochs = analysis_options.EPOCHS,
    has_probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Probes take most of the time.")
    ] = True,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write; default: beside CACHE.")
    ] = None,
) -> None:
    """Compare spatial structure and classes of the cached encoders, to choose one.

    Example: repa-cache analyze encoders demo.zarr
    """
    how = (
        analysis_options.ProbeOptions(held_out=held_out, epochs=epochs, seed=seed)
        if has_probe
        else None
    )
    analyses.compare(cache, _names(encoders), rows, how, device, out).show()


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _levels(text: str) -> tuple[float, ...]:
    try:
        levels = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        levels = ()
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ConfigError("expected numbers from 0 to 1, as 0.1,0.5,0.9.", where=f"--levels {text}")
    return levels


def _blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _names(text))
    except ValueError:
        raise ConfigError("expected whole numbers, as 4,8,12.", where=f"--blocks {text}") from None
