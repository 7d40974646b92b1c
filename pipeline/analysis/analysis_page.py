"""What an analysis leaves behind: a CSV file, figures, and a page that needs no other file.

K blocks, L levels of noise.
"""

import csv
import io
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cache.files import write_atomically
from pipeline.analysis.state_tables import Findings
from pipeline.pages import write_page
from pipeline.pages.figures import COLOURS, INK, inline_svg, new_figure, save_png, styled
from stages.analyze.cached_encoders import EncoderComparison
from stages.analyze.hidden_states import AlignmentScores, ProbeScores
from stages.analyze.losses import LossScores
from stages.analyze.subject import Subject

WIDTH = 10.0
# Even steps look even, also to those who do not see all colours.
MAP = "viridis"
# Blocks beyond which a cell has no room for its number.
NUMBERED_BLOCKS = 32
BRIGHT, DARK = "#ffffff", "#0b1120"
ACCENT = "#f97316"
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))


def draw_cknna(found: AlignmentScores) -> Figure:
    """A heat map of CKNNA by block and level of noise for each encoder."""
    levels, panels = found.subject.options.levels, len(found.scores)
    height = panels * (0.75 + 0.3 * len(levels)) + 0.3
    figure = new_figure(WIDTH, height)
    top = max(float(np.max(scores)) for scores in found.scores.values()) or 1.0
    for axes, (encoder, scores) in zip(
        figure.subplots(panels, 1, squeeze=False)[:, 0], found.scores.items(), strict=True
    ):
        mesh = _heat_map(axes, scores.T, top)
        blocks = found.subject.blocks
        axes.set_xticks(np.arange(len(blocks)) + 0.5, [str(block) for block in blocks])
        axes.set_yticks(np.arange(len(levels)) + 0.5, [f"{level:g}" for level in levels])
        axes.set_ylabel("noise")
        is_target = encoder in found.subject.settings.encoders
        axes.set_title(f"{encoder}{' (aligned with)' if is_target else ''}", loc="left")
        for depth in found.subject.settings.depths(encoder):
            _mark_depth(axes, found.subject, depth)
    axes.set_xlabel("block")
    bar = figure.colorbar(mesh, ax=figure.axes, pad=0.01, fraction=0.03, aspect=30)
    bar.set_label("CKNNA")
    bar.outline.set_visible(False)
    return figure


def _heat_map(axes: Axes, values: npt.NDArray[np.float64], top: float) -> mpl.collections.QuadMesh:
    """Cells with their numbers where there is room, the first row on top."""
    axes.grid(visible=False)
    mesh = axes.pcolormesh(values, cmap=MAP, vmin=0, vmax=top, edgecolors=BRIGHT, linewidth=0.6)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if values.shape[1] > NUMBERED_BLOCKS:
        return mesh
    size = 8 if values.shape[1] <= 16 else 6.5
    for (row, column), value in np.ndenumerate(values):
        colour = DARK if value > 0.6 * top else BRIGHT
        number = f"{value:.2f}".removeprefix("0") if values.shape[1] > 16 else f"{value:.2f}"
        place = (column + 0.5, row + 0.5)
        axes.text(*place, number, ha="center", va="center", color=colour, fontsize=size)
    return mesh


def _mark_depth(axes: Axes, subject: Subject, depth: int) -> None:
    """A frame around a block whose output was aligned."""
    if depth in subject.blocks:
        left = subject.blocks.index(depth)
        frame = mpl.patches.Rectangle(
            (left, 0), 1, len(subject.options.levels), fill=False, edgecolor=ACCENT, linewidth=2.2
        )
        axes.add_patch(frame).set_clip_on(False)
        axes.get_xticklabels()[left].set(color=ACCENT, fontweight="bold")


def draw_probes(found: ProbeScores) -> Figure:
    """Accuracy by block, a curve for each level of noise, with what is cached as references."""
    figure = new_figure(WIDTH, 4.2)
    axes = figure.subplots()
    blocks, levels = found.subject.blocks, found.subject.options.levels
    shades = mpl.colormaps[MAP](np.linspace(0.9, 0.28, len(levels)))
    for column, (level, shade) in enumerate(zip(levels, shades, strict=True)):
        column_of = [accuracies[column] for accuracies in found.hidden]
        top1 = np.array([100 * one.top1 for one in column_of])
        error = np.array([100 * one.error(one.top1) for one in column_of])
        axes.fill_between(blocks, top1 - error, top1 + error, color=shade, alpha=0.18, linewidth=0)
        axes.plot(blocks, top1, "o-", color=shade, markersize=3.5, label=f"noise {level:g}")
    for colour, dashes, (name, one) in zip(
        cycle(COLOURS), cycle(DASHES), found.references.items(), strict=False
    ):
        axes.axhline(100 * one.top1, color=colour, linestyle=dashes, linewidth=1.4, label=name)
    _finish_probes(figure, axes, found)
    return figure


def _finish_probes(figure: Figure, axes: Axes, found: ProbeScores) -> None:
    subject, chance = found.subject, 100 / found.classes
    axes.axhline(chance, color=INK, linewidth=0.8, alpha=0.5, label="chance")
    for depth in set(subject.settings.depths()) & set(subject.blocks):
        axes.axvline(depth, color=ACCENT, linewidth=6, alpha=0.18, zorder=0)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(subject.blocks)
    axes.set_xlim(subject.blocks[0] - 0.4, subject.blocks[-1] + 0.4)
    axes.set_ylim(0, 102)
    axes.set_xlabel("block")
    axes.set_ylabel("top-1 accuracy in %")
    figure.legend(loc="outside right upper")


def draw_losses(found: LossScores) -> Figure:
    """The loss by level of noise."""
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots()
    levels = [one.level for one in found.levels]
    means = np.array([one.mean for one in found.levels])
    errors = np.array([one.error for one in found.levels])
    axes.fill_between(levels, means - errors, means + errors, color=COLOURS[0], alpha=0.18)
    axes.plot(levels, means, "o-", color=COLOURS[0], markersize=3.5)
    axes.set(xlabel="noise", ylabel="denoising loss", xlim=(0, 1))
    return figure


def draw_encoders(found: EncoderComparison) -> Figure:
    """How likeness decays with distance, structure against classes, and CKNNA between encoders."""
    panels = [_draw_decay]
    if found.trained:
        panels.append(_draw_classes)
    if len(found.encoders) > 1:
        panels.append(_draw_pairs)
    figure = new_figure(WIDTH, 3.6)
    (places,) = figure.subplots(1, len(panels), squeeze=False)
    for draw, axes in zip(panels, places, strict=True):
        draw(axes, found)
    figure.legend(loc="outside lower left", ncols=4)
    return figure


def _draw_decay(axes: Axes, found: EncoderComparison) -> None:
    for colour, one in zip(cycle(COLOURS), found.encoders, strict=False):
        away = np.arange(1, len(one.structure.decay) + 1) / one.tokens**0.5
        axes.plot(away, one.structure.decay, color=colour, label=one.name)
    axes.axvline(0.5, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="distance in sides of the image", ylabel="mean cosine of tokens")
    axes.set_title("Likeness by distance", loc="left")


def _draw_classes(axes: Axes, found: EncoderComparison) -> None:
    structures, least = [one.structure.lds for one in found.encoders], 100.0
    for colour, one in zip(cycle(COLOURS), found.encoders, strict=False):
        assert one.mean_token is not None, "probes were trained"
        percent = 100 * one.mean_token.top1
        axes.plot(percent, one.structure.lds, "o", color=colour, markersize=8, clip_on=False)
        least = min(least, percent)
    axes.set(xlabel="probe of the mean token: top-1 in %", ylabel="LDS")
    axes.set_title("Structure and classes", loc="left")
    axes.set_xlim(0.9 * least, 101)
    axes.set_ylim(1.2 * min(0.0, *structures), 1.2 * max(0.1, *structures))


def _draw_pairs(axes: Axes, found: EncoderComparison) -> None:
    """CKNNA of any two encoders; columns are in the order of rows."""
    names = [one.name for one in found.encoders]
    _heat_map(axes, np.array([[found.cknna[a, b] for b in names] for a in names]), 1.0)
    ticks = np.arange(len(names)) + 0.5
    axes.set_xticks(ticks, [])
    axes.set_yticks(ticks, names)
    axes.set_title("CKNNA of mean tokens", loc="left")


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
