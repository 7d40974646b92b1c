"""The log of a run: one JSON object a line, cut back to the checkpoint on resuming."""

import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from cache.files import write_atomically
from stages.train.settings import TrainSettings

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
    lines = path.read_text().splitlines(keepends=True)
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
        self._stream = path.open("a", buffering=1)

    def write(self, step: int, values: Values) -> None:
        """Append a line."""
        self._stream.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class RunLog:
    """Adds to what is logged how fast training is, and passes it on.

    step: the step the run goes on from; device: whose memory is logged.
    """

    def __init__(
        self, sinks: Sequence[Sink], settings: TrainSettings, step: int, device: torch.device
    ) -> None:
        self._sinks = sinks
        self._batch_size = settings.batch_size
        self._device = device
        self._last = (time.monotonic(), step, 0.0)

    def write(self, step: int, values: Values, wait_seconds: float) -> None:
        """Log values; wait_seconds: that training has waited for data since it began."""
        now = time.monotonic()
        seconds, steps = max(now - self._last[0], 1e-9), step - self._last[1]
        waited = wait_seconds - self._last[2]
        self._last = (now, step, wait_seconds)
        speeds = (
            steps / seconds,
            steps / seconds * self._batch_size,
            waited / seconds,
            peak_memory_bytes(self._device) / 1e9,
        )
        for sink in self._sinks:
            sink.write(step, {**values, **dict(zip(SPEEDS, speeds, strict=True))})

    def close(self) -> None:
        """Close everything."""
        for sink in self._sinks:
            sink.close()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has held, on a GPU or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # What getrusage says on Linux contains the process that started this one.
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
