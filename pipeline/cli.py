"""The commands: parse, validate, hand over."""

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import Config, ConfigError, load_config
from pipeline.exits import FAILED, reported_errors
from stages.settings import nearest
from stages.train.options import ExportOptions, Layout, Weights

PRESETS = files("pipeline") / "presets"

app = typer.Typer(
    help="Build once, train many: cached latents and encoder features for REPA training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[
    Path, typer.Option("--config", help="The configuration; paths in it are relative to it.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."),
]
CheckpointStep = Annotated[
    int | None,
    typer.Option("--checkpoint", metavar="STEP", help="Of which step; default: the newest."),
]
WhichWeights = Annotated[
    Weights, typer.Option(help="The moving average, or the weights as trained.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


# Commands that need nothing but a configuration: name and what they do.
SUMMARIES = {
    "train": "Train from the cache, or go on from the last checkpoint.",
    "run": "Build, train, sample and evaluate; every part goes on where it stopped.",
    "bench": "Measure how fast batches can be read here, and how many GPUs that feeds.",
}
# Those that torchrun can start in several processes.
DISTRIBUTED = frozenset({"train", "sample", "evaluate"})


@app.command()
def build(
    rebuild: Annotated[
        list[str], typer.Option(metavar="NAME", help="Make an encoder or the VAE anew; repeatable.")
    ] = [],  # noqa: B006 - typer reads the default; nobody changes it
    repair: Annotated[
        bool, typer.Option("--repair", help="Read everything, and make again what is damaged.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Take over images and labels that changed.")
    ] = False,
    shards: Annotated[
        str, typer.Option(metavar="A:B", help="Make shards A to B - 1 only, of those missing.")
    ] = ":",
    workers: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Processes that encode: as many as there are GPUs."),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have the workers of this Dask cluster encode."),
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Print the address of Dask's dashboard.")
    ] = False,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Encode the data set into the cache, making only what is missing.

    Start it in several places at once, and they share the work.

    Example: repa-cache build --workers 8
    """
    with reported_errors(debug):
        part = _parse_shards(shards)
        is_clustered = workers > 0 or scheduler is not None
        if workers and scheduler:
            raise ConfigError("--workers starts a cluster, --scheduler uses one: give either.")
        if dashboard and not is_clustered:
            raise ConfigError("--dashboard: only builds with --workers or --scheduler have one.")
        settings = _load("build", config, overrides)
        from pipeline.work import do_build
        from stages.encode.options import BuildOptions, Cluster

        options = BuildOptions(
            repair=repair,
            update=update,
            shards=part,
            cluster=Cluster(workers, scheduler, dashboard) if is_clustered else None,
        )
        do_build(settings, options, rebuild)


def _parse_shards(text: str) -> slice:
    """The shards meant by `A:B`, either of which may be left out."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if not match:
        raise ConfigError(f"--shards {text}: expected A:B, as 0:100, :100 or 100:.")
    start, stop = (int(number) if number else None for number in match.groups())
    return slice(start, stop)


@app.command()
def verify(
    fidelity: Annotated[
        int, typer.Option(metavar="ROWS", help="Also encode this many images again and compare.")
    ] = 0,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Read the whole cache and list what is wrong with it, and what mends it.

    Example: repa-cache verify --fidelity 256
    """
    with reported_errors(debug):
        settings = _load("verify", config, overrides)
        from pipeline.work import do_verify

        if not do_verify(settings, fidelity):
            raise typer.Exit(FAILED)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .pt or .safetensors to write.")],
    step: CheckpointStep = None,
    weights: WhichWeights = Weights.EMA,
    layout: Annotated[
        Layout | None,
        typer.Option(help="Whose code is to load it; default: repa for SiT, dit for DiT."),
    ] = None,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Write a run's weights as a file that the published REPA, SiT or DiT code loads.

    Example: repa-cache export SiT-XL-2.pt --checkpoint 400000
    """
    with reported_errors(debug):
        settings = _load("export", config, overrides)
        from pipeline.work import do_export

        do_export(settings, ExportOptions(out, step, weights, layout))


@app.command()
def sample(
    step: CheckpointStep = None,
    official: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Published weights of train.model, instead of a checkpoint."
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
        settings = _load("sample", config, overrides)
        from pipeline.work import do_sample
        from stages.sample.options import SampleOptions

        do_sample(settings, SampleOptions(official, step, weights, out))


@app.command()
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
        for key, path in (("reference", reference), ("inception_weights", inception_weights)):
            if path is not None:
                value = json.dumps(str(path.absolute()))
                overrides = [*overrides, f"evaluate.{key}={value}"]
        settings = _load("evaluate", config, overrides)
        from pipeline.work import do_evaluate
        from stages.sample.options import EvaluateOptions

        do_evaluate(settings, EvaluateOptions(samples, save_statistics))


def _add_command(name: str, summary: str) -> None:
    def run(
        config: ConfigPath = Path("pipeline.toml"),
        overrides: Overrides = [],  # noqa: B006
        debug: Debug = False,
    ) -> None:
        with reported_errors(debug):
            settings = _load(name, config, overrides)
            from pipeline.work import COMMANDS

            COMMANDS[name](settings)

    app.command(name, help=f"{summary}\n\nExample: repa-cache {name} --config pipeline.toml")(run)


for _name, _summary in SUMMARIES.items():
    _add_command(_name, _summary)


def _load(command: str, path: Path, overrides: list[str]) -> Config:
    """The configuration of a command.

    What does the work is imported later: torch takes seconds, which a mistake in a setting should
    not cost.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and command not in DISTRIBUTED:
        raise ConfigError(f"`repa-cache {command}` runs in one process, not under torchrun.")
    # Only training has a batch to share.
    return load_config(path, overrides, world if command == "train" else 1)


@app.command()
def init(
    preset: Annotated[str, typer.Option(help="Which configuration to write.")] = "demo",
    config: Annotated[Path, typer.Option(help="Where to write it.")] = Path("pipeline.toml"),
    debug: Debug = False,
) -> None:
    """Write a commented pipeline.toml from a preset, to be edited.

    Example: repa-cache init --preset imagenet256-sit-xl2
    """
    with reported_errors(debug):
        known = {entry.name.removesuffix(".toml"): entry for entry in PRESETS.iterdir()}
        if preset not in known:
            raise ConfigError(f"--preset: unknown name {preset!r}; {nearest(preset, known)}.")
        if config.exists():
            raise ConfigError(f"{config} exists already. Name another file with --config.")
        config.write_text(known[preset].read_text())
        typer.echo(f"{config}: the preset {preset}. Edit its paths, then run `repa-cache run`.")
