"""The log of a run: one JSON object a line, cut back to the checkpoint on resuming."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cache.files import write_atomically

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
        """Append a line."""
        self._stream.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
