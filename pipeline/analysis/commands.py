"""Analyses of a run's hidden states and of a cache's encoders, written where they are found."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer
from matplotlib.figure import Figure

from cache.files import write_atomically
from pipeline.analysis.analysis_figures import draw_cknna, draw_encoders, draw_probes
from pipeline.analysis.encoder_tables import encoders_summary, encoders_text
from pipeline.analysis.state_tables import (
    Text,
    alignment_summary,
    alignment_text,
    probe_summary,
    probe_text,
)
from pipeline.pages import write_page
from pipeline.pages.figures import inline_svg, save_png, styled
from pipeline.tables import show_table
from stages.analyze.analysis_options import AlignmentOptions, ProbeOptions, StateOptions
from stages.analyze.cached_encoders import compare_encoders
from stages.analyze.run_states import measure_cknna, measure_probes
from stages.analyze.subject import open_subject
from stages.placement import find_device


@dataclass(frozen=True)
class Place:
    """Where an analysis of a run goes. out: a folder, by default `analysis` in the run's."""

    run: Path
    out: Path | None = None

    def stem(self, name: str) -> Path:
        """The path of its files, without what tells them apart."""
        return (self.out or self.run / "analysis") / name


def do_cknna(
    place: Place, encoders: tuple[str, ...], states: StateOptions, how: AlignmentOptions
) -> None:
    """Measure CKNNA of a run's hidden states, write what was found and say the main of it."""
    subject = open_subject(place.run, encoders, states)
    found = measure_cknna(subject, how, find_device(states.device))
    stem = place.stem(f"cknna-{subject.title}")
    _write(stem, alignment_text(found), lambda: draw_cknna(found))
    show_table(*alignment_summary(found))
    _say(stem, subject.notes)


def do_probe(
    place: Place, encoders: tuple[str, ...], states: StateOptions, how: ProbeOptions
) -> None:
    """Probe a run's hidden states, write what was found and say the main of it."""
    subject = open_subject(place.run, encoders, states)
    found = measure_probes(subject, how, find_device(states.device))
    stem, text = place.stem(f"probe-{subject.title}"), probe_text(found)
    _write(stem, text, lambda: draw_probes(found))
    show_table(*probe_summary(found))
    _say(stem, text.notes)


def do_encoders(
    path: Path,
    encoders: tuple[str, ...],
    rows: int,
    how: ProbeOptions | None,
    device: str,
    out: Path | None,
) -> None:
    """Compare a cache's encoders, write what was found and say it."""
    found = compare_encoders(path, encoders, rows, how, find_device(device))
    stem, text = (out or path.parent) / f"{path.stem}-encoders", encoders_text(found)
    _write(stem, text, lambda: draw_encoders(found))
    show_table(*encoders_summary(found))
    _say(stem, (text.lead, *text.notes))


def _write(stem: Path, text: Text, draw: Callable[[], Figure]) -> None:
    """A CSV file, a picture and a page that needs no other file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([text.columns, *text.values])
    write_atomically(_file(stem, "csv"), stream.getvalue().encode())
    with styled():
        figure = draw()
        save_png(figure, _file(stem, "png"))
        svg = inline_svg(figure)
    write_page(
        _file(stem, "html"),
        "analysis.html",
        title=text.title,
        lead=text.lead,
        notes=text.notes,
        figures=[(svg, text.caption)],
        tables=text.tables,
        facts=text.facts,
    )


def _say(stem: Path, notes: tuple[str, ...]) -> None:
    for note in notes:
        typer.echo(note)
    typer.echo(f"{_file(stem, 'html')}, and beside it a .csv and a .png")


def _file(stem: Path, kind: str) -> Path:
    """Names of caches and checkpoints may have dots of their own."""
    return stem.with_name(f"{stem.name}.{kind}")
