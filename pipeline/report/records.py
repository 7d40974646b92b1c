"""What the folder of a run says; neither cache nor configuration nor torch is needed."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import safe_open

from cache.errors import RepaCacheError
from stages.evaluate.results import Result, are_same_images, read_records
from stages.sample.samples import Samples, read_manifest
from stages.train.former_settings import in_todays_form
from stages.train.log import log_path, read_log
from stages.weights import run_folder

Log = list[dict[str, float]]

# A parameter by name, but computed and never trained.
POSITIONS = "pos_embed"
# A moving average is over so many values, or this part of all if that is more.
AVERAGED, AVERAGED_PART = 10, 0.02


class ReportError(RepaCacheError):
    """A folder is no run, or what it holds cannot be read."""


@dataclass(frozen=True)
class Curve:
    """Values by step, without those that are infinite or not a number."""

    steps: list[float]
    values: list[float]

    @property
    def median(self) -> float | None:
        """The median of the values, if there are any."""
        return median(self.values) if self.values else None

    @cached_property
    def smoothed(self) -> list[float]:
        """Exponential moving average, unbiased at the start."""
        share = 1 / max(AVERAGED, AVERAGED_PART * len(self.values))
        smooth, weight, result = 0.0, 0.0, []
        for value in self.values:
            smooth, weight = smooth + share * (value - smooth), weight + share * (1 - weight)
            result.append(smooth / weight)
        return result


@dataclass(frozen=True)
class SampleRecord:
    """Images that were drawn from weights, and what came of judging them.

    title: of the weights; drawn: from what and how; grid: a picture of the first images, if it is
    there.
    """

    title: str
    drawn: dict[str, Any]
    results: list[Result]
    grid: Path | None

    @property
    def checkpoint(self) -> str:
        """The weights that they were drawn from: a checkpoint's name, or a file's."""
        return str(self.drawn.get("checkpoint", self.title))

    @property
    def step(self) -> int | None:
        """The step of training, unless the weights are not the run's."""
        try:
            return run_folder.step_of(self.checkpoint)
        except ValueError:
            return None

    @property
    def weights(self) -> str:
        """Which of the weights: of a run, `ema` or `model`."""
        return "model" if self.title == f"{self.checkpoint}-model" else "ema"

    @property
    def is_of_average(self) -> bool:
        """Whether the weights are the moving average of a run's checkpoint, the usual case."""
        return self.step is not None and self.weights == "ema"


@dataclass(frozen=True)
class RunRecord:
    """What there is of a run, which may have just begun.

    name: by which a page tells it from others; config: empty before it was kept; state: of the
    newest checkpoint, empty before the first; grids: drawn while training, by step.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    log: Log
    state: dict[str, Any]
    grids: dict[int, Path]
    samples: list[SampleRecord]
    parameters: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> Curve:
        """The values of a name, which not every line has."""
        lines = [line for line in self.log if math.isfinite(line.get(name, math.nan))]
        return Curve([line["step"] for line in lines], [line[name] for line in lines])

    @property
    def losses(self) -> list[str]:
        """The names of the losses: what is logged by level of noise, too."""
        named = (name.partition("@")[0] for line in self.log for name in line if "@" in name)
        return list(dict.fromkeys(named))

    @property
    def step(self) -> int:
        """The last step of which something is known."""
        logged = int(self.log[-1]["step"]) if self.log else 0
        return max(logged, int(self.state.get("step", 0)))

    @property
    def images(self) -> int:
        """Images seen by training."""
        return int(self.step * self.settings.get("batch_size", 0))

    @property
    def epochs(self) -> float | None:
        """How often training has seen each image."""
        valid = self.state.get("rows", {}).get("valid")
        return self.images / valid if valid else None

    @property
    def steps_per_second(self) -> float | None:
        """The median of what was logged."""
        return self.curve("steps_per_second").median

    @property
    def seconds(self) -> float:
        """How long the logged steps took, all parts of the run together."""
        curve = self.curve("steps_per_second")
        steps = zip([0.0, *curve.steps], curve.steps, strict=False)
        return sum(
            (step - before) / speed
            for (before, step), speed in zip(steps, curve.values, strict=True)
        )

    @property
    def skipped(self) -> int:
        """Steps that were left out, because their loss or gradient was not finite."""
        return int(sum(self.curve("skipped").values))

    @property
    def written(self) -> datetime | None:
        """When its log was last written."""
        path = log_path(self.folder)
        return datetime.fromtimestamp(path.stat().st_mtime, UTC) if path.is_file() else None


def is_run(folder: Path) -> bool:
    """Whether training has begun in a folder."""
    return run_folder.config_path(folder).is_file() or log_path(folder).is_file()


def read_run(folder: Path, name: str | None = None) -> RunRecord:
    """Read what there is of a run. Raises ReportError if the folder is none."""
    check_run(folder)
    try:
        return _read(folder, name or folder.resolve().name)
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder} holds a damaged file of a run: {error}.") from error


def _read(folder: Path, name: str) -> RunRecord:
    path = run_folder.config_path(folder)
    checkpoints = [
        path for path in run_folder.checkpoint_paths(folder) if run_folder.fault_of(path) is None
    ]
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    state = run_folder.read_state(checkpoints[-1]) if checkpoints else {}
    settings = in_todays_form(config.get("train") or state.get("settings", {}))
    if "train" in config:
        config["train"] = settings
    return RunRecord(
        folder=folder,
        name=name,
        config=config,
        log=read_log(log_path(folder)),
        state=state,
        grids={run_folder.step_of(path.stem): path for path in run_folder.grid_paths(folder)},
        samples=list(_samples(folder)),
        parameters=_parameters(checkpoints[-1]) if checkpoints else None,
        settings=settings,
    )


def check_run(folder: Path) -> None:
    """Raise ReportError if a folder is no run, with what may have been meant."""
    if not folder.is_dir():
        raise ReportError(
            f"There is no folder {folder}", remedy="Name the folder of a run (train.run)."
        )
    if is_run(folder):
        return
    below = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and is_run(entry))
    advice = (
        f"But it holds runs: name them, as {folder / below[0]}"
        if below
        else "Run `repa-cache train` first, or name another folder"
    )
    raise ReportError(
        f"{folder} is no run: it has neither {run_folder.config_path(folder).name} nor "
        f"{log_path(folder).name}",
        remedy=f"{advice}.",
    )


def _samples(run: Path) -> Iterator[SampleRecord]:
    """Samples in the order of their names; their images need not be there any more."""
    folder = run_folder.samples_path(run, "")
    entries = [entry for entry in folder.glob("[!.]*") if entry.is_dir() or entry.suffix == ".json"]
    for title in sorted({e.name if e.is_dir() else e.name[: -len(".json")] for e in entries}):
        samples = Samples(run_folder.samples_path(run, title), 0)
        records = read_records(samples.folder)
        drawn = read_manifest(samples.folder) or next((one.drawn for one in records), {})
        of_these = [one for one in records if are_same_images(one.drawn, drawn)]
        grid = samples.grid if samples.grid.is_file() else None
        yield SampleRecord(title, drawn, [r for one in of_these for r in one.results], grid)
        for one in records:
            if one not in of_these:
                yield SampleRecord(title, one.drawn, one.results, None)


def _parameters(checkpoint: Path) -> int:
    """Number of trained parameters, by the header of the file alone."""
    with safe_open(run_folder.weights_path(checkpoint, "model"), "np") as file:
        names = [name for name in file.keys() if name != POSITIONS]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
