"""What each command does with a valid configuration."""

import json
from collections.abc import Callable, Mapping

import typer

from cache.files import write_atomically
from cache.layout import check_recipe, has_column, read_column, root_attributes
from pipeline.config import Config
from pipeline.launch import find_device, placement
from pipeline.report import gather, show, used_columns, write_report
from stages.encode.build import build
from stages.encode.columns import declared_recipes
from stages.sample.evaluate import evaluate
from stages.sample.generate import newest_samples, sample
from stages.train.loop import train


def do_build(config: Config) -> None:
    """Fill the cache, and say what was done."""
    made = build(config.encode, find_device(config.build.device))
    what = f"{made.shards_made} shards made" if made.shards_made else "nothing was missing"
    typer.echo(
        f"{made.path}: {made.rows:,} rows in {len(made.columns)} columns, "
        f"{made.data_bytes / 1e6:,.1f} MB; {what}"
    )


def do_train(config: Config) -> None:
    """Train, or go on training, and draw the curves."""
    settings = config.train
    _check_cache(config)
    with placement(settings.device) as place:
        if place.is_main:
            settings.run.mkdir(parents=True, exist_ok=True)
            resolved = config.model_dump(mode="json")
            write_atomically(settings.run / "config.json", json.dumps(resolved, indent=2).encode())
        reached = train(settings, config.cache.path, config.latents.column, place)
    if not place.is_main:
        return
    write_report(gather(config))
    made = reached.step - reached.start
    speed = f", {made / reached.seconds:,.1f} steps/s" if made else ""
    typer.echo(
        f"{settings.run}: step {reached.step:,} of {settings.model} "
        f"({reached.parameters / 1e6:,.1f} M parameters); {made:,} steps made{speed}"
    )


def do_sample(config: Config) -> None:
    """Draw the images that lack."""
    with placement(config.train.device) as place:
        samples, made = sample(config.sample, config.train.run, config.latents.location, place)
    if not place.is_main:
        return
    write_report(gather(config))
    what = f"{made} drawn" if made else "nothing was missing"
    typer.echo(f"{samples.folder}: {samples.images:,} images; {what}")


def do_evaluate(config: Config) -> None:
    """Compare the samples with the cached data set."""
    _, samples = newest_samples(config.sample, config.train.run)
    with placement(config.train.device) as place:
        results = evaluate(config.evaluate, samples, config.encode, place)
    write_report(gather(config))
    if not results:
        typer.echo("nothing to measure: evaluate.frechet_encoders is empty")
    for result in results:
        typer.echo(f"{result.metric}: {result.value:.4g} ({result.note})")


def do_run(config: Config) -> None:
    """Everything, from images to numbers."""
    do_build(config)
    do_train(config)
    do_sample(config)
    do_evaluate(config)
    show(gather(config))


def _check_cache(config: Config) -> None:
    """Raise StaleCacheError if a column that is used is not what this configuration would build.

    Weights are compared by `build`, which loads the networks.
    """
    path = config.cache.path
    root_attributes(path)
    declared = declared_recipes(config.encode)
    for name in used_columns(config):
        if has_column(path, name):
            column = read_column(path, name)
            check_recipe(column, {**column.recipe, **declared[name]})


COMMANDS: Mapping[str, Callable[[Config], None]] = {
    "build": do_build,
    "train": do_train,
    "sample": do_sample,
    "evaluate": do_evaluate,
    "run": do_run,
}
