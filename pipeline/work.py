"""What each command does with a valid configuration."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from cache.files import write_atomically
from cache.metadata import check_fields, has_column, read_column, root_attributes
from cache.rows import count_rows
from pipeline.bench import measure_reading, show_bench
from pipeline.config import Config
from pipeline.evaluation_targets import targets_of
from pipeline.inspection.contents import gather_contents
from pipeline.inspection.gallery import select, show_contents, show_images, write_gallery
from pipeline.inspection.inspect_options import InspectOptions
from pipeline.judging import do_evaluate
from pipeline.launch import placement
from pipeline.plan.outline import make_plan
from pipeline.plan.plan_json import exported
from pipeline.plan.plan_tables import show_plan
from pipeline.report.records import is_run
from pipeline.report.report_page import write_own_report
from pipeline.summary import show_summary, summarise, used_columns
from pipeline.tables import show_columns, show_faults, show_fidelity, show_invalid
from stages.encode.build import build, find_columns
from stages.encode.build_options import BuildOptions
from stages.encode.building.columns import declared_recipes
from stages.encode.building.faults import find_faults
from stages.encode.measuring.fidelity import measure_fidelity
from stages.placement import find_device
from stages.sample.generate import sample
from stages.sample.grids import GridDrawer
from stages.sample.sample_options import EvaluateOptions, SampleOptions
from stages.train.loop import train
from stages.weights.export import export
from stages.weights.export_options import ExportOptions
from stages.weights.run_folder import config_path


def do_build(
    config: Config, options: BuildOptions | None = None, rebuild: Sequence[str] = ()
) -> None:
    """Fill the cache, and say what was done. rebuild: names of columns to make anew."""
    columns = find_columns(config.encode, rebuild)
    options = replace(options or BuildOptions(), rebuild=columns)
    made = build(config.encode, find_device(config.build.device), options)
    speed = f"{made.counts.images / made.seconds:,.1f} images/s"
    done = []
    if 0 < made.added < made.rows:
        done.append(f"{made.added:,} images added")
    if made.counts.shards:
        done.append(f"{made.counts.shards} shards made in {made.seconds:,.0f} s ({speed})")
    if made.missing:
        done.append(f"{made.missing} shards left to make")
    show_columns(made.columns)
    typer.echo(f"{made.path}: {made.rows:,} rows; {'; '.join(done) or 'nothing was missing'}")
    show_invalid(made.invalid)
    if made.damaged:
        typer.echo("still damaged, and in no column of this configuration:")
        show_faults(made.damaged)


def do_verify(config: Config, fidelity_rows: int = 0) -> bool:
    """Check the cache, and say what was found; returns whether all is well."""
    path = config.cache.path
    faults = find_faults(path, config.build.threads)
    if faults:
        show_faults(faults)
        return False
    typer.echo(f"{path}: complete, and every byte is what was written")
    if fidelity_rows:
        device = find_device(config.build.device)
        show_fidelity(measure_fidelity(config.encode, fidelity_rows, device))
    return True


def do_plan(
    config: Config, images: int | None, gpus: int, *, is_measured: bool, as_json: bool
) -> bool:
    """Say what a cache and its run will cost and gain; returns whether it fits on the disk."""
    plan = make_plan(config, images, gpus, is_measured=is_measured)
    if as_json:
        typer.echo(json.dumps(exported(plan), indent=2))
    else:
        show_plan(plan)
    return plan.space.fits


def do_inspect(config: Config, options: InspectOptions, *, is_configured: bool) -> None:
    """Say what the cache holds, or what it has of some images; draw it, if that is asked for.

    is_configured: whether it is to be what the configuration would build.
    """
    contents = gather_contents(config, is_configured=is_configured)
    if not options.keys:
        show_contents(contents)
    if not (options.keys or options.has_pictures):
        return
    chosen = select(contents, options)
    if options.keys:
        show_images(chosen)
    if options.has_pictures:
        page = write_gallery(config.encode, contents, chosen, options.folder)
        typer.echo(f"{page}: {len(chosen.rows):,} images")


def do_bench(config: Config, *, is_configured: bool) -> None:
    """Measure reading, and say what it feeds.

    is_configured: whether the cache has to be what the configuration would build.
    """
    if is_configured:
        _check_cache(config)
    show_bench(measure_reading(config.train, config.tensors))


def do_train(config: Config) -> None:
    """Train, or go on training, and draw the curves."""
    settings = config.train
    _check_cache(config)
    with placement(settings.device) as place:
        is_drawing = settings.grid_every > 0 and place.is_main
        location, device = config.decoder.location, place.device
        draw = GridDrawer(config.sample, settings, location, device) if is_drawing else None
        reached = train(settings, config.tensors, place, draw, lambda: _record(config))
    if not place.is_main:
        return
    write_own_report(settings.run)
    made = reached.step - reached.start
    speed = f", {made / reached.seconds:,.1f} steps/s" if made else ""
    typer.echo(
        f"{settings.run}: step {reached.step:,} of {settings.model} "
        f"({reached.parameters / 1e6:,.1f} M parameters); {made:,} steps made{speed}"
    )


def _record(config: Config) -> None:
    """Keep the configuration with the run."""
    content = json.dumps(config.model_dump(mode="json"), indent=2)
    write_atomically(config_path(config.train.run), content.encode())


def do_export(run: Path, options: ExportOptions) -> None:
    """Write a run's weights for published code, and say what loads them."""
    made = export(run, options)
    typer.echo(
        f"{made.path}: {options.weights} of step {made.step:,} of {made.model}, layout "
        f"{made.layout}, {made.tensors:,} tensors of {made.parameters / 1e6:,.1f} M parameters; "
        f"for {made.loaded_by}"
    )


def do_sample(config: Config, options: SampleOptions | None = None) -> None:
    """Draw the images that lack."""
    with placement(config.train.device) as place:
        drawn = sample(
            config.sample, options or SampleOptions(), config.train, config.decoder, place
        )
    if not place.is_main:
        return
    _write_report(config)
    samples = drawn.samples
    what = f"{drawn.images:,} drawn" if drawn.images else "nothing was missing"
    typer.echo(f"{samples.folder}: {samples.images:,} images; {what}")


def _write_report(config: Config) -> None:
    """Write the page of the run; of weights from elsewhere, there need not be one here."""
    if is_run(config.train.run):
        write_own_report(config.train.run)


def do_run(config: Config) -> None:
    """Everything, from images to numbers."""
    do_build(config)
    do_train(config)
    do_sample(config)
    do_evaluate(config, EvaluateOptions(), targets_of([], config))
    show_summary(summarise(config))


def _check_cache(config: Config) -> None:
    """Raise StaleCacheError if a column that is used is not what this configuration would build.

    Weights are compared by `build`, which loads the networks.
    """
    path = config.cache.path
    root_attributes(path)
    rows = count_rows(path)
    declared = declared_recipes(config.encode)
    for name in used_columns(config):
        if has_column(path, name):
            column = read_column(path, name, rows)
            check_fields(column, declared[name])


COMMANDS: Mapping[str, Callable[[Config], None]] = {
    "train": do_train,
    "run": do_run,
}
