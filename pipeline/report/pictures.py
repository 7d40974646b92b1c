"""Sample grids over steps: few enough, and small enough, for a page that can be sent around."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.pages import compressed, embedded
from pipeline.report.records import RunRecord, SampleRecord

# Pictures of all runs together; of a run there are as many as share out, within these bounds.
PICTURES, MOST, FEWEST = 36, 12, 3
# Longest side in pixels, alone and beside others: 8 x 8 photographs then take some 150 kB.
SIDE_ALONE, SIDE = 1152, 768
QUALITY = 82
# A PNG of fewer bytes is embedded as it is.
SMALL_BYTES = 64_000
# Of samples that are in no strip.
OTHERS = 6


@dataclass(frozen=True)
class Picture:
    """A picture to embed. is_exact: whether it is the file itself."""

    source: str
    width: int
    height: int
    is_exact: bool


@dataclass(frozen=True)
class Frame:
    """The samples of a run at a step."""

    step: int
    picture: Picture


def grids_of(record: RunRecord) -> dict[int, Path]:
    """Grids by step: those drawn while training, and of samples drawn from its checkpoints."""
    drawn = {
        sample.step: sample.grid
        for sample in record.samples
        if sample.step is not None and sample.grid is not None and sample.is_of_average
    }
    return dict(sorted({**drawn, **record.grids}.items()))


def strips(records: Sequence[RunRecord]) -> list[list[Frame]]:
    """For each run the grids to show, of steps that are as near to each other as they get."""
    grids = [grids_of(record) for record in records]
    count = max(FEWEST, min(MOST, PICTURES // len(records)))
    targets = evenly(sorted({step for of_run in grids for step in of_run}), count)
    side = SIDE_ALONE if len(records) == 1 else SIDE
    return [
        [Frame(step, shown(of_run[step], side)) for step in nearest_steps(targets, of_run)]
        for of_run in grids
    ]


def evenly(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of these steps, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    places = (round(place * (len(steps) - 1) / (count - 1)) for place in range(count))
    return [steps[place] for place in places]


def nearest_steps(targets: Sequence[int], there: Mapping[int, Path]) -> list[int]:
    """The steps that are there and nearest to one of the targets, each once."""
    if not there:
        return []
    return sorted({min(there, key=lambda step: abs(step - target)) for target in targets})


def other_samples(record: RunRecord) -> list[SampleRecord]:
    """Samples with a grid that is in no strip: of weights as trained, or of elsewhere."""
    others = [s for s in record.samples if s.grid is not None and not s.is_of_average]
    return others[-OTHERS:]


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
