"""The log of a run: one JSON object a line, cut back to the checkpoint on resuming."""

import json
import time
from pathlib import Path

from cache.files import write_atomically


def read_log(path: Path) -> list[dict[str, float]]:
    """All whole lines of a log, in order; a line torn by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class RunLog:
    """Appends lines to a log.

    step: the step the run goes on from; later lines of an earlier part are removed.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = path.open("a", buffering=1)
        self._last = (time.monotonic(), step)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line with these values and the steps per second since the last one."""
        now = time.monotonic()
        seconds, steps = now - self._last[0], step - self._last[1]
        self._last = (now, step)
        line = {"step": step, **values, "steps_per_second": steps / max(seconds, 1e-9)}
        self._stream.write(json.dumps(line) + "\n")
