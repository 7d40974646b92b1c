"""`repa-cache evaluate`: images into numbers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError
from pipeline.launchers import checked_world
from stages.processes import rank

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.evaluation_targets import Target
    from stages.evaluate.evaluate import Judged
    from stages.evaluate.results import Result

# What samples were found to be: a path and its metrics for each.
Judgements = Sequence[tuple[Path, Sequence["Result"]]]


def evaluate(
    config: "Config", targets: "Sequence[Target]" = (), save_statistics: Path | None = None
) -> Judgements:
    """Compare samples with a reference, all as a configuration says; rank 0 alone gets metrics.

    targets: the samples, by default those of the configuration's run; save_statistics: a file to
    keep the reference's in.
    """
    from pipeline.evaluation_targets import samples_of, targets_of
    from pipeline.process_group import placement
    from pipeline.report.records import is_run
    from pipeline.report.report_page import write_report
    from stages.evaluate.evaluate import evaluate, open_samples
    from stages.progress import say

    targets = targets or targets_of([], config)
    with placement(config.train.device) as place:
        judged = [open_samples(samples_of(one), config.build.decoding_threads()) for one in targets]
        if place.is_main:
            for remark in _remarks(targets, judged, config):
                say(remark)
        found = evaluate(config.evaluate, judged, config.encode, place, save_statistics)
    if place.is_main:
        for run in dict.fromkeys(target.run for target in targets):
            # Of weights from elsewhere, there need not be a run here.
            if run is not None and is_run(run):
                write_report([run], out=None)
    return [(one.path, results) for one, results in zip(judged, found, strict=False)]


def _remarks(
    targets: "Sequence[Target]", judged: "Sequence[Judged]", config: "Config"
) -> Iterator[str]:
    """What is to be said before samples are measured: how they differ from configurations."""
    for target, samples in zip(targets, judged, strict=True):
        if (own := target.config) is None:
            continue
        if drawn := samples.drawn_otherwise(own.sample, own.decoder.vae):
            yield (
                f"{samples.path}: measured as it was drawn, which is not as configured now: "
                f"{'; '.join(drawn)}"
            )
        if own is not config and (other := _judged_otherwise(own, config)):
            yield f"{samples.path}: judged like the first, not as its run says: {'; '.join(other)}"


def _judged_otherwise(own: "Config", config: "Config") -> list[str]:
    """In which settings that decide metrics two configurations differ, a line for each."""
    from cache.recipe import differences, flatten

    sections = {"evaluate"} if config.evaluate.reference else {"evaluate", "dataset", "cache"}
    found, wanted = (
        flatten(one.model_dump(mode="json", include=sections)) for one in (own, config)
    )
    return differences(found, wanted, "its run")


def show(found: Judgements) -> None:
    """Print metrics, of several samples side by side."""
    if not found:
        typer.echo("nothing to measure: evaluate.metrics and evaluate.frechet_encoders are empty")
    elif len(found) == 1:
        _show_results(found[0][1])
    else:
        _show_comparison([str(path) for path, _ in found], [results for _, results in found])


def _show_results(results: "Sequence[Result]") -> None:
    """Print metrics of samples."""
    from pipeline.tables import show_table

    rows = []
    for one in results:
        images = "" if one.reference_images is None else f"{one.reference_images:,}"
        compared = (f"{one.images:,}", one.shown_reference, images)
        rows.append((one.metric, one.shown, one.shown_floor, *compared, "; ".join(one.remarks)))
    titles = ("metric", "value", "floor", "samples", "reference", "of images", "remarks")
    show_table(titles, rows)


def _show_comparison(names: Sequence[str], results: "Sequence[Sequence[Result]]") -> None:
    """Print metrics of several samples, a row for each. names: of the samples."""
    from pipeline.tables import new_table, print_table

    metrics = list(dict.fromkeys(one.metric for of_one in results for one in of_one))
    table = new_table("samples", "images", *metrics, has_numbers=True)
    notes: dict[str, dict[str, None]] = {}
    for name, of_one in zip(names, results, strict=True):
        by_metric = {one.metric: one for one in of_one}
        cells = []
        for result in map(by_metric.__getitem__, metrics):
            floor = f" ({result.shown_floor})" if result.floor is not None else ""
            cells.append(result.shown + floor)
        table.add_row(name, f"{of_one[0].images:,}", *cells)
        for one in of_one:
            for remark in one.remarks:
                notes.setdefault(f"{one.metric}: {remark}", {})[name] = None
    print_table(table)
    against = [one.against for of_one in results for one in of_one if one.reference]
    brackets = "in brackets the floor: what as many real images are measured at"
    for line in dict.fromkeys([*against, brackets]):
        typer.echo(line)
    for note, said_of in notes.items():
        typer.echo(note if len(said_of) == len(names) else f"{note} ({', '.join(said_of)})")


def command(
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
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Compare samples with a reference: FID, sFID, IS, precision, recall, KID and others.

    Several are judged alike, as the configuration of the first run says, with the reference
    measured once. What was measured before is kept.

    Example: repa-cache evaluate runs/a runs/b --reference VIRTUAL_imagenet256_labeled.npz
    """
    for key, path in (("reference", reference), ("inception_weights", inception_weights)):
        if path is not None:
            if not path.exists():
                raise ConfigError(f"evaluate.{key}: there is no file {path}")
            overrides = [*overrides, arguments.set_path(f"evaluate.{key}", path)]
    settings, targets = _load(samples or [], config, overrides)
    found = evaluate(settings, targets, save_statistics)
    if rank() == 0:
        show(found)


def _load(
    paths: list[Path], path: Path | None, overrides: list[str]
) -> "tuple[Config, list[Target]]":
    """What is to be judged, and the configuration for all of it: that of the first run.

    That at `path` comes before, if it is named; of no run, it is pipeline.toml, or the default.
    """
    checked_world("evaluate")
    from pipeline.evaluation_targets import configuration_of_none, own_targets, targets_of

    if paths and path is None:
        needs = arguments.needs_of("evaluate")
        targets = own_targets(paths, overrides, needs)
        config = next((one.config for one in targets if one.config is not None), None)
        if config is None and not arguments.DEFAULT_CONFIG.exists():
            config = configuration_of_none(overrides, needs)
        if config is not None:
            return arguments.with_packages("evaluate", config, paths[0]), targets
    config = arguments.load("evaluate", path or arguments.DEFAULT_CONFIG, overrides)
    return config, targets_of(paths, config)
