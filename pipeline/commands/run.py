"""`repa-cache run`: everything, from images to numbers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands import arguments, build, evaluate, sample, train

if TYPE_CHECKING:
    from cache.layout import Column
    from cache.stores.places import Place
    from pipeline.config import Config
    from pipeline.report.reading import Savings
    from pipeline.report.records import RunRecord
    from stages.evaluate.results import Result
    from stages.sample.samples import Samples


@dataclass(frozen=True)
class Summary:
    """A finished run with its cache and samples.

    rows: of the cache; columns: that it reads, by name; saved: what it would have computed
    without it.
    """

    config: "Config"
    rows: int
    columns: "dict[str, Column]"
    record: "RunRecord"
    checkpoint: Path
    samples: "Samples"
    results: "list[Result]"
    saved: "Savings"

    def lines(self) -> dict[str, str]:
        """Names and values, in the order in which things were made."""
        from pipeline.report.report_page import curves_path, page_path
        from pipeline.tables import duration

        lines = {"cache": str(self.config.cache.path), "cached": f"{self.rows:,} rows"}
        for name, column in self.columns.items():
            lines[f"  {name}"] = f"{column.rows * column.row_bytes / 1e6:,.1f} MB"
        lines["checkpoint"] = str(self.checkpoint)
        record, run = self.record, self.config.train.run
        if (speed := record.steps_per_second) is not None:
            lines["training"] = f"{record.step:,} steps at {speed:.2f} steps/s"
            for name in record.losses:
                values = record.curve(name).values
                lines[f"  {name}"] = f"{values[0]:.4f} at the start, {values[-1]:.4f} at the end"
            if self.saved.online_seconds:
                lines["  encoders"] = (
                    f"{duration(self.saved.build_seconds)} to cache; in every step "
                    f"{duration(self.saved.online_seconds)}"
                )
            lines["loss curves"] = str(curves_path(run))
        if self.samples.grid.is_file():
            lines["sample grid"] = str(self.samples.grid)
        for result in self.results:
            lines[result.metric] = f"{result.shown} ({result.note})"
        lines["report"] = str(page_path(run))
        return lines


def run(config: "Config") -> Summary:
    """Build, train, sample and evaluate; every part goes on where it stopped."""
    for _ in _parts(config):
        pass
    return _summarise(config)


def _parts(config: "Config") -> Iterator[Callable[[], None]]:
    """The parts in their order, each done when the next is asked for: what prints its result."""
    yield partial(build.show, build.build(config))
    yield partial(train.show, config, train.train(config))
    yield partial(sample.show, sample.sample(config))
    yield partial(evaluate.show, evaluate.evaluate(config))


def _summarise(config: "Config") -> Summary:
    """Read what there is of a run that has at least one checkpoint."""
    from cache.reader import Cache
    from pipeline.report.reading import read_by, savings
    from pipeline.report.records import read_run
    from pipeline.requirements import used_columns
    from stages.evaluate.results import read_results
    from stages.sample.generate import newest_samples
    from stages.weights.checkpoint import find

    run, cache = config.train.run, Cache(config.cache.path)
    samples, record = newest_samples(run, config.sample.images), read_run(run)
    return Summary(
        config=config,
        rows=len(cache.rows),
        columns={name: _column(cache.path, name) for name in used_columns(config)},
        record=record,
        checkpoint=find(run, None).folder,
        samples=samples,
        results=read_results(samples.folder),
        saved=savings(config, [read_by(config, record.step)]),
    )


def _column(path: "Place", name: str) -> "Column":
    from cache.captions import located
    from cache.reader import Cache

    folder, own = located(path, name)
    return Cache(folder).column(own).column


def _show(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary.lines().items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def command(
    config: arguments.ConfigPath = arguments.DEFAULT_CONFIG,
    overrides: arguments.Overrides = [],
) -> None:
    """Build, train, sample and evaluate; every part goes on where it stopped.

    Example: repa-cache run --config pipeline.toml
    """
    settings = arguments.load("run", config, overrides)
    for show_part in _parts(settings):
        show_part()
    _show(_summarise(settings))
