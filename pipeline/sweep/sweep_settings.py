"""sweep.toml as it is written: a base, what varies, and how the runs are judged."""

from typing import Annotated, Any

from pydantic import Field

from pipeline.analysis.analyses import AnalysisName
from stages.analyze.analysis_options import LEVELS, ROWS
from stages.evaluate.evaluate_settings import MetricName
from stages.setting_paths import AnchoredPath, AnchoredPlace
from stages.setting_types import Count, Few, Settings

# Of noise, from 0, clean.
Level = Annotated[float, Field(ge=0, le=1)]
# Settings by section, as in pipeline.toml.
Document = dict[str, Any]


class Variation(Settings):
    """One entry of `[[variations]]`: a method, say."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}$")] | None = None
    """What its runs are called; by default by what it changes."""
    set: Document = Field(default_factory=dict)
    """The settings that it changes, as after `--set`: `set.train.align = []`."""


class JudgeSettings(Settings):
    """How runs are sampled and measured: all alike, with the same noises and labels."""

    steps: tuple[Count, ...] = ()
    """At which, besides the last one."""
    images: Count | None = None
    """How many are drawn each time; by default sample.images of the base."""
    metrics: tuple[MetricName, ...] | None = None
    """Metrics in the features of Inception; by default evaluate.metrics of the base."""
    frechet_encoders: tuple[str, ...] | None = None
    """Encoders in whose features samples are judged too; by default those of the base."""
    analyses: tuple[AnalysisName, ...] = ()
    """What is analysed at these steps, as `repa-cache analyze` does."""
    levels: tuple[Level, ...] = LEVELS
    """Of noise, at which it is."""
    rows: Count = ROWS
    """Images of the cache that analyses look at, at most."""
    validation: AnchoredPlace | None = None
    """A cache of images held out, whose losses are measured in the place of the runs' own."""


class EarlyStopSettings(Settings):
    """Successive halving: at some steps, the worse runs end.

    Runs that differ in their seed alone are judged by their mean, and end together.
    """

    enabled: bool = False
    """Whether it is done; `--early-stop` and `--no-early-stop` come before."""
    metric: str | None = None
    """By which metric; by default the first of those that are measured."""
    steps: tuple[Count, ...] = ()
    """At which; by default those of [judge]."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The part that goes on, rounded up."""


class SweepSettings(Settings):
    """Runs on one cache: every variation with every combination of the grid."""

    base: AnchoredPath
    """The pipeline.toml of which all runs are variations."""
    folder: AnchoredPath | None = None
    """Where the runs go; by default `runs/` and the name of this file, beside it."""
    set: Document = Field(default_factory=dict)
    """Settings of all runs, in the place of the base's."""
    grid: Document = Field(default_factory=dict)
    """A list of values for each setting that varies: `grid.train.seed = [0, 1, 2]`."""
    variations: tuple[Variation, ...] = ()
    """Settings that vary together, a list of them."""
    judge: JudgeSettings = JudgeSettings()
    early_stop: EarlyStopSettings = EarlyStopSettings()
    attempts: Few = 3
    """How often a run is begun, or taken up again, before it is left as failed."""
