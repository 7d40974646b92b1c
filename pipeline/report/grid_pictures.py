"""Sample grids over steps: few enough, and small enough, for a page that can be sent around."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.pages import compressed, embedded
from pipeline.report.compared_runs import spelt
from pipeline.report.records import RunRecord

# Pictures of all runs together; of a run there are as many as share out, within these bounds.
PICTURES, MOST, FEWEST = 36, 12, 3
# Longest side in pixels, alone and beside others: 8 x 8 photographs then take some 150 kB.
SIDE_ALONE, SIDE = 1152, 768
QUALITY = 82
# A PNG of fewer bytes is embedded as it is.
SMALL_BYTES = 64_000
# Of samples that are in no strip.
OTHERS = 6
# Settings that decide what is to be seen, and what stands for one that the program chooses.
DRAWN_WITH = (
    *("solver", "steps", "time_shift", "guidance", "guidance_interval", "guided_channels"),
    *("labels", "seed", "uint8"),
)
CHOSEN_LATER = "auto"


@dataclass(frozen=True)
class Picture:
    """A picture to embed. is_exact: whether it is the file itself."""

    source: str
    width: int
    height: int
    is_exact: bool


@dataclass(frozen=True)
class Grid:
    """A file with samples, and the settings that they were drawn with, as far as is known."""

    path: Path
    drawn: Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """Samples of a run.

    title: what they were drawn from; step: of training, of a checkpoint's moving average;
    remark: settings that they were drawn with, where these differ from the configuration of the
    first run on the page.
    """

    title: str
    picture: Picture
    remark: str
    step: int | None = None


def grids_of(record: RunRecord) -> dict[int, Grid]:
    """Grids by step: those drawn while training, and of samples drawn from its checkpoints."""
    drawn = {
        sample.step: Grid(sample.grid, sample.drawn)
        for sample in record.samples
        if sample.step is not None and sample.grid is not None and sample.is_of_average
    }
    while_training = {step: Grid(path, _usual(record)) for step, path in record.grids.items()}
    return dict(sorted({**drawn, **while_training}.items()))


def strips(records: Sequence[RunRecord]) -> list[list[Frame]]:
    """For each run the grids to show, of steps that are as near to each other as they get."""
    grids = [grids_of(record) for record in records]
    count = max(FEWEST, min(MOST, PICTURES // len(records)))
    targets = evenly(sorted({step for of_run in grids for step in of_run}), count)
    side, usual = SIDE_ALONE if len(records) == 1 else SIDE, _usual(records[0])
    return [
        [
            _frame(f"step {step:,}", of_run[step], usual, side, step)
            for step in nearest_steps(targets, of_run)
        ]
        for of_run in grids
    ]


def _frame(
    title: str, grid: Grid, usual: Mapping[str, Any], side: int, step: int | None = None
) -> Frame:
    return Frame(title, shown(grid.path, side), differing(grid.drawn, usual), step)


def _usual(record: RunRecord) -> dict[str, Any]:
    """The settings by which the configuration of a run has samples drawn."""
    return dict(record.config.get("sample", {}))


def differing(drawn: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """The settings that samples were drawn with instead of the usual ones, in words."""
    return ", ".join(
        f"{name} {spelt(drawn[name])}"
        for name in DRAWN_WITH
        if name in drawn
        and name in usual
        and drawn[name] != usual[name]
        and usual[name] != CHOSEN_LATER
    )


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of these steps, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    places = (round(place * (len(steps) - 1) / (count - 1)) for place in range(count))
    return [steps[place] for place in places]


def nearest_steps(targets: Sequence[int], there: Collection[int]) -> list[int]:
    """The steps that are there and nearest to one of the targets, each once."""
    if not there:
        return []
    return sorted({min(there, key=lambda step: abs(step - target)) for target in targets})


def other_frames(records: Sequence[RunRecord]) -> list[list[Frame]]:
    """For each run samples that are in no strip: of weights as trained, or of elsewhere."""
    usual = _usual(records[0])
    return [
        [
            _frame(sample.title, Grid(sample.grid, sample.drawn), usual, SIDE)
            for sample in record.samples
            if sample.grid is not None and not sample.is_of_average
        ][-OTHERS:]
        for record in records
    ]


def shown(path: Path, side: int = SIDE) -> Picture:
    """A picture of a file: as it is if that is small, or else made smaller and compressed.

    side: its longest, in pixels, at most.
    """
    with Image.open(path) as image:
        width, height = image.size
        scale = min(1.0, side / max(width, height))
        if scale == 1 and path.stat().st_size <= SMALL_BYTES:
            return Picture(embedded(path), width, height, is_exact=True)
        size = (round(width * scale), round(height * scale))
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return Picture(compressed(smaller, QUALITY), *size, is_exact=False)
