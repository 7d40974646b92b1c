"""Analyses of a run's hidden states and losses, and of a cache's encoders: each with its page."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cache.stores.places import local_folder
from stages.analyze import analysis_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from cache.stores.places import Place
    from pipeline.analysis.state_tables import Findings, Row
    from stages.analyze.subject import Subject

# Those of a run.
AnalysisName = Literal["cknna", "probe", "losses"]


@dataclass(frozen=True)
class Analysis:
    """What was found: the page, the main of it as a table with its titles, and what to say."""

    page: Path
    summary: "tuple[Row, list[Row]]"
    notes: tuple[str, ...]

    def show(self) -> None:
        """Print the main of it."""
        from pipeline.tables import show_table

        show_table(*self.summary)
        for note in self.notes:
            typer.echo(note)
        typer.echo(f"{self.page}, and beside it a .csv and a .png")


def cknna(
    run: Path,
    states: analysis_options.StateOptions,
    how: analysis_options.AlignmentOptions,
    encoders: tuple[str, ...] = (),
    out: Path | None = None,
) -> Analysis:
    """Measure CKNNA of a run's hidden states with its cache's encoders, and write a page of it.

    encoders: names, by default all; out: a folder, by default `analysis` in the run's.
    """
    from pipeline.analysis.analysis_page import draw_cknna
    from pipeline.analysis.state_tables import alignment_findings, alignment_summary
    from stages.analyze.hidden_states import measure_cknna
    from stages.analyze.subject import open_subject
    from stages.placement import find_device

    subject = open_subject(run, encoders, states)
    found = measure_cknna(subject, how, find_device(states.device))
    findings, summary = alignment_findings(found), alignment_summary(found)
    return _written(subject, "cknna", findings, summary, lambda: draw_cknna(found), out)


def probe(
    run: Path,
    states: analysis_options.StateOptions,
    how: analysis_options.ProbeOptions,
    encoders: tuple[str, ...] = (),
    out: Path | None = None,
) -> Analysis:
    """Probe a run's hidden states for classes, and write a page of it.

    encoders: names, by default all; out: a folder, by default `analysis` in the run's.
    """
    from pipeline.analysis.analysis_page import draw_probes
    from pipeline.analysis.state_tables import probe_findings, probe_summary
    from stages.analyze.hidden_states import measure_probes
    from stages.analyze.subject import open_subject
    from stages.placement import find_device

    subject = open_subject(run, encoders, states)
    found = measure_probes(subject, how, find_device(states.device))
    findings, summary = probe_findings(found), probe_summary(found)
    return _written(subject, "probe", findings, summary, lambda: draw_probes(found), out)


def losses(run: Path, states: analysis_options.StateOptions, out: Path | None = None) -> Analysis:
    """Measure a run's denoising losses by level of noise, and write a page of it.

    out: a folder, by default `analysis` in the run's.
    """
    from pipeline.analysis.analysis_page import draw_losses
    from pipeline.analysis.loss_tables import loss_findings, loss_summary
    from stages.analyze.losses import measure_losses
    from stages.analyze.subject import open_subject
    from stages.placement import find_device

    subject = open_subject(run, (), states)
    found = measure_losses(subject, find_device(states.device))
    findings, summary = loss_findings(found), loss_summary(found)
    return _written(subject, "losses", findings, summary, lambda: draw_losses(found), out)


def _written(
    subject: "Subject",
    name: AnalysisName,
    findings: "Findings",
    summary: "tuple[Row, list[Row]]",
    draw: "Callable[[], Figure]",
    out: Path | None,
) -> Analysis:
    """Write what was found of a run, and say it. out: a folder other than the run's own."""
    from pipeline.analysis.analysis_page import write_analysis
    from stages.weights.run_folder import analyses_path

    stem = (out or analyses_path(subject.run)) / f"{name}-{subject.title}"
    return Analysis(write_analysis(stem, findings, draw), summary, findings.notes)


def compare(
    cache: "Place",
    encoders: tuple[str, ...] = (),
    rows: int = analysis_options.ROWS,
    how: analysis_options.ProbeOptions | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> Analysis:
    """Compare a cache's encoders, and write a page of it.

    encoders: names, by default all; rows: images, at most; how: to probe, None for no probes;
    out: a folder, by default that of the cache, or this one for a cache in a store.
    """
    from pipeline.analysis.analysis_page import draw_encoders, write_analysis
    from pipeline.analysis.encoder_tables import encoders_findings, encoders_summary
    from stages.analyze.cached_encoders import compare_encoders
    from stages.placement import find_device

    found = compare_encoders(cache, encoders, rows, how, find_device(device))
    stem = (out or local_folder(cache)) / f"{cache.stem}-encoders"
    findings = encoders_findings(found)
    page = write_analysis(stem, findings, lambda: draw_encoders(found))
    return Analysis(page, encoders_summary(found), (findings.lead, *findings.notes))
