"""What `sample` is told beyond the configuration."""

from dataclasses import dataclass
from pathlib import Path

from stages.weights.export_options import Layout, Weights


@dataclass(frozen=True)
class SampleOptions:
    """What to draw from, and where to.

    official: a file of weights to draw from instead of the run's; layout: whose code it is of, if
    it does not tell; step: of the run's checkpoint, by default the newest; weights: the moving
    average, or those that were trained; folder: of the images, by default one in the run's folder.
    """

    official: Path | None = None
    layout: Layout | None = None
    step: int | None = None
    weights: Weights = Weights.EMA
    folder: Path | None = None
