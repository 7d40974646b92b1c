"""What `repa-cache run` ends with: where everything lies, and what it came to."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cache.layout import Column
from cache.reader import Cache
from pipeline.config import Config
from pipeline.report.records import RunRecord, read_run
from pipeline.report.report_page import curves_path, page_path
from stages.evaluate.results import Result, read_results
from stages.sample.generate import newest_samples
from stages.sample.samples import Samples
from stages.weights.checkpoint import find


@dataclass(frozen=True)
class Summary:
    """A finished run with its cache and samples. rows: of the cache; columns: that it reads."""

    config: Config
    rows: int
    columns: list[Column]
    record: RunRecord
    checkpoint: Path
    samples: Samples
    results: list[Result]

    def facts(self) -> dict[str, str]:
        """Names and values, in the order in which things were made."""
        facts = {"cache": str(self.config.cache.path), "cached": f"{self.rows:,} rows"}
        for column in self.columns:
            facts[f"  {column.name}"] = f"{column.rows * column.row_bytes / 1e6:,.1f} MB"
        facts["checkpoint"] = str(self.checkpoint)
        record, run = self.record, self.config.train.run
        if (speed := record.steps_per_second) is not None:
            facts["training"] = f"{record.step:,} steps at {speed:.2f} steps/s"
            for name in record.losses:
                values = record.curve(name).values
                facts[f"  {name}"] = f"{values[0]:.4f} at the start, {values[-1]:.4f} at the end"
            facts["loss curves"] = str(curves_path(run))
        if self.samples.grid.is_file():
            facts["sample grid"] = str(self.samples.grid)
        for result in self.results:
            facts[result.metric] = f"{result.shown} ({result.note})"
        facts["report"] = str(page_path(run))
        return facts


def summarise(config: Config) -> Summary:
    """Read what there is of a run that has at least one checkpoint."""
    run, cache = config.train.run, Cache(config.cache.path)
    samples = newest_samples(run, config.sample.images)
    return Summary(
        config=config,
        rows=len(cache.rows),
        columns=[cache.column(name).column for name in used_columns(config)],
        record=read_run(run),
        checkpoint=find(run, None).folder,
        samples=samples,
        results=read_results(samples.folder),
    )


def used_columns(config: Config) -> list[str]:
    """The columns that a run reads."""
    return [name for views in config.tensors.columns(config.train.encoders) for name in views]


def show_summary(summary: Summary) -> None:
    """Print the summary."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary.facts().items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
