"""Measuring samples for `repa-cache evaluate`, and saying what came of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from cache.recipe import differences, flatten
from pipeline.config import Config
from pipeline.evaluation_targets import Target
from pipeline.launch import placement
from pipeline.report.records import is_run
from pipeline.report.report_page import write_own_report
from pipeline.tables import show_comparison, show_results
from stages.evaluate.evaluate import evaluate
from stages.evaluate.judged import EvaluateError, Judged, open_samples
from stages.evaluate.results import Result
from stages.progress import say
from stages.sample.sample_options import EvaluateOptions
from stages.weights.checkpoint import find, latest
from stages.weights.run_folder import samples_path


def do_evaluate(config: Config, options: EvaluateOptions, targets: Sequence[Target]) -> None:
    """Compare samples with a reference, all as a configuration says."""
    with placement(config.train.device) as place:
        judged = [open_samples(_samples_of(one), config.build.threads) for one in targets]
        if place.is_main:
            for remark in _remarks(targets, judged, config):
                say(remark)
        found = evaluate(config.evaluate, options, judged, config.encode, place)
    if place.is_main:
        _write_pages(targets)
        _show(judged, found)


def _write_pages(targets: Sequence[Target]) -> None:
    """Write anew the pages of runs; of weights from elsewhere, there need not be one here."""
    for run in dict.fromkeys(target.run for target in targets):
        if run is not None and is_run(run):
            write_own_report(run)


def _show(judged: Sequence[Judged], found: Sequence[Sequence[Result]]) -> None:
    if not found:
        typer.echo("nothing to measure: evaluate.metrics and evaluate.frechet_encoders are empty")
    elif len(found) == 1:
        show_results(found[0])
    else:
        show_comparison([str(one.path) for one in judged], found)


def _samples_of(target: Target) -> Path:
    if target.samples is not None:
        return target.samples
    assert target.run is not None
    return newest_drawn(target.run)


def newest_drawn(run: Path) -> Path:
    """The samples of a run's newest checkpoint, or the newest samples if no checkpoint is left.

    Raises CheckpointError or EvaluateError if there are none.
    """
    drawn = sorted(samples_path(run, "").glob("[!.]*/"))
    if drawn and latest(run) is None:
        return drawn[-1]
    newest = samples_path(run, find(run, None).folder.name)
    if drawn and not newest.is_dir():
        raise EvaluateError(
            f"There is no {newest}. Run `repa-cache sample` first, or name others that are there: "
            f"{', '.join(map(str, drawn))}."
        )
    return newest


def _remarks(targets: Sequence[Target], judged: Sequence[Judged], config: Config) -> Iterator[str]:
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


def _judged_otherwise(own: Config, config: Config) -> list[str]:
    """In which settings that decide metrics two configurations differ, a line for each."""
    sections = {"evaluate"} if config.evaluate.reference else {"evaluate", "dataset", "cache"}
    found, wanted = (
        flatten(one.model_dump(mode="json", include=sections)) for one in (own, config)
    )
    return differences(found, wanted, "its run")
