"""What a run has come to, read from its files: a summary, curves and a page."""

import base64
import html
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from cache.files import write_atomically
from cache.layout import Column
from cache.reader import Cache
from pipeline.config import Config
from stages.sample.generate import newest_samples
from stages.sample.results import Result, read_results
from stages.sample.samples import Samples
from stages.train.checkpoint import find
from stages.train.log import log_path, read_log
from stages.train.objectives import OBJECTIVES

Log = list[dict[str, float]]
# The losses of denoising, of SiT and of DiT.
TERMS = {term for objective in OBJECTIVES.values() for term in objective.terms}


@dataclass(frozen=True)
class RunReport:
    """What a run has come to.

    log: a line per logged step; results: empty before evaluation.
    """

    config: Config
    rows: int
    columns: list[Column]
    log: Log
    checkpoint: Path
    samples: Samples
    results: list[Result]

    @property
    def curves(self) -> Path:
        """The picture of the losses."""
        return self.config.train.run / "curves.png"

    @property
    def page(self) -> Path:
        """The page."""
        return self.config.train.run / "report.html"

    def facts(self) -> dict[str, str]:
        """Names and values of a summary, in the order in which things were made."""
        facts = {"cache": str(self.config.cache.path), "cached": f"{self.rows:,} rows"}
        for column in self.columns:
            facts[f"  {column.name}"] = f"{column.rows * column.row_bytes / 1e6:,.1f} MB"
        facts["checkpoint"] = str(self.checkpoint)
        if self.log:
            speed = median(line["steps_per_second"] for line in self.log)
            facts["training"] = f"{self.log[-1]['step']:,} steps at {speed:.2f} steps/s"
            for name in curve_names(self.log):
                _, values = curve(self.log, name)
                facts[f"  {name}"] = f"{values[0]:.4f} at the start, {values[-1]:.4f} at the end"
            facts["loss curves"] = str(self.curves)
        if self.samples.grid.is_file():
            facts["sample grid"] = str(self.samples.grid)
        for result in self.results:
            facts[result.metric] = f"{result.shown} ({result.note})"
        facts["report"] = str(self.page)
        return facts


def gather(config: Config) -> RunReport:
    """Read what there is of a run that has at least one checkpoint."""
    samples = newest_samples(config.train.run, config.sample.images)
    cache = Cache(config.cache.path)
    return RunReport(
        config=config,
        rows=len(cache.rows),
        columns=[cache.column(name).column for name in used_columns(config)],
        log=read_log(log_path(config.train.run)),
        checkpoint=find(config.train.run, None).folder,
        samples=samples,
        results=read_results(samples.folder),
    )


def used_columns(config: Config) -> list[str]:
    """The columns that a run reads."""
    return [name for views in config.tensors.columns(config.train.encoders) for name in views]


def curve_names(log: Log) -> list[str]:
    """The losses in a log, over all levels of noise."""
    names = dict.fromkeys(name for line in log for name in line)
    return [n for n in names if n in TERMS or (n.startswith("alignment/") and "@" not in n)]


def curve(log: Log, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a loss, which not every line has."""
    lines = [line for line in log if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def show(report: RunReport) -> None:
    """Print the summary."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in report.facts().items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def write_report(report: RunReport) -> None:
    """Draw the curves and write the page, which needs no other file."""
    if report.log:
        draw_curves(report.log, report.curves)
    pictures = [
        f"<figure><img alt='{title}' src='data:image/png;base64,{_base64(path)}'>"
        f"<figcaption>{title}</figcaption></figure>"
        for title, path in (
            ("Samples", report.samples.grid),
            ("Losses by step", report.curves),
        )
        if path.is_file()
    ]
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in report.facts().items()
    ]
    template = Template((files("pipeline") / "report.html").read_text())
    page = template.substitute(
        title=html.escape(report.config.train.run.name),
        facts="\n".join(rows),
        pictures="\n".join(pictures),
        configuration=html.escape(json.dumps(report.config.model_dump(mode="json"), indent=2)),
    )
    write_atomically(report.page, page.encode())


def draw_curves(log: Log, path: Path) -> None:
    """Draw each loss by step as PNG: what was logged, and its moving average."""
    names = curve_names(log)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.5 * len(names), 3), layout="constrained", dpi=150)
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            steps, values = curve(log, name)
            axes.plot(steps, values, color="#9aa5b1", linewidth=0.8)
            axes.plot(steps, _smoothed(values), color="#c2410c", linewidth=1.8)
            axes.set_title(name)
            axes.set_xlabel("step")
        figure.savefig(path)


def _smoothed(values: list[float], decay: float = 0.9) -> list[float]:
    """Exponential moving average, unbiased at the start."""
    smooth, weight, result = 0.0, 0.0, []
    for value in values:
        smooth, weight = decay * smooth + (1 - decay) * value, decay * weight + 1 - decay
        result.append(smooth / weight)
    return result


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
