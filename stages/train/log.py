"""The log of a run: one JSON object a line, and its copies in TensorBoard and Weights & Biases."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cache.files import write_atomically
from stages.packages import needs
from stages.train.train_settings import RunError, TrainSettings

Values = Mapping[str, float]
# What a line says of the machine and not of the training.
SPEEDS = ("steps_per_second", "images_per_second", "data_wait", "memory_gb")


def log_path(run: Path) -> Path:
    """Where the log of a run lies."""
    return run / "log.jsonl"


def read_log(path: Path) -> list[dict[str, float]]:
    """All whole lines of a log, in order; a line torn by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Sink(Protocol):
    """Where lines of the log go."""

    def write(self, step: int, values: Values) -> None:
        """Keep the values of a step."""

    def close(self) -> None:
        """Finish."""


class JsonLines:
    """Appends lines to a file.

    step: the step the run goes on from; later lines of an earlier part are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = path.open("a", encoding="utf-8", buffering=1)

    def write(self, step: int, values: Values) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self._stream.close()


def open_sinks(settings: TrainSettings, step: int) -> list[Sink]:
    """Every place that a run's log goes to. Raises RunError if one cannot be had."""
    sinks: list[Sink] = []
    if settings.tensorboard:
        sinks.append(TensorBoard(settings.run / "tensorboard", step))
    if settings.wandb is not None:
        sinks.append(WandB(settings))
    return [JsonLines(log_path(settings.run), step), *sinks]


class TensorBoard:
    """Event files; those of later steps of an earlier part are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError(needs("tensorboard"), where="train.tensorboard") from error
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def write(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name.replace("@", "/"), value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; a resumed run goes on in it."""

    def __init__(self, settings: TrainSettings) -> None:
        try:
            import wandb
        except ImportError as error:
            raise RunError(needs("wandb"), where="train.wandb") from error
        try:
            self._run: Any = wandb.init(
                project=settings.wandb,
                name=settings.run.name,
                id=_wandb_id(settings.run),
                dir=settings.run,
                resume="allow",
                config=settings.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise RunError(f"it does not start: {error}", where="train.wandb") from error

    def write(self, step: int, values: Values) -> None:
        """Log the values; of steps that are made again after a crash, the first stay."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run: Path) -> str:
    """The name of a run there, made once and kept beside its log."""
    path = run / "wandb-id"
    if not path.is_file():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="utf-8")
