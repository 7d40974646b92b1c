"""How fast a run is and what memory it takes, for its log."""

import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.train.log import SPEEDS, Sink, Values
from stages.train.train_settings import TrainSettings


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
    return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024
