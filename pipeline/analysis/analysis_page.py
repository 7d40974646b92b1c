"""What an analysis leaves behind: a CSV file, a picture, and a page that needs no other file."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from cache.files import write_atomically
from pipeline.analysis.state_tables import Findings
from pipeline.pages import write_page
from pipeline.pages.figures import inline_svg, save_png, styled


def write_analysis(stem: Path, findings: Findings, draw: Callable[[], Figure]) -> Path:
    """Write the three files; returns the page. stem: their path without what tells them apart."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([findings.columns, *findings.values])
    write_atomically(_file(stem, "csv"), stream.getvalue().encode())
    with styled():
        figure = draw()
        save_png(figure, _file(stem, "png"))
        svg = inline_svg(figure)
    page = _file(stem, "html")
    write_page(
        page,
        "analysis.html",
        title=findings.title,
        lead=findings.lead,
        notes=findings.notes,
        figures=[(svg, findings.caption)],
        tables=findings.tables,
        facts=findings.facts,
    )
    return page


def _file(stem: Path, kind: str) -> Path:
    """Names of caches and checkpoints may have dots of their own."""
    return stem.with_name(f"{stem.name}.{kind}")
