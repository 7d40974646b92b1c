"""What a run measures at every step, kept on the device until it is asked for, and its speed.

M losses, B images of a rank, n steps since the last line of the log.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.placement import Placement
from stages.train.log import SPEEDS, Sink, Values
from stages.train.train_settings import TrainSettings

# Levels of noise, from 0 to 1, whose losses are told apart.
BUCKETS = 4
# Behind the losses of every bucket, in a step's row.
OTHERS = ("loss", "gradient_norm")


class Measured(NamedTuple):
    """What a step gave, on the device.

    terms: the losses of every image, [M, B]; level: of noise, [B]; loss: what was minimised;
    gradient_norm: before clipping.
    """

    terms: Tensor
    level: Tensor
    loss: Tensor
    gradient_norm: Tensor


class Meter:
    """Collects a row of numbers for every step of one rank, without waiting for the device.

    names: of the losses, [M].
    """

    def __init__(self, names: Sequence[str], place: Placement) -> None:
        self.names = tuple(names)
        self._place = place
        self._rows: list[Tensor] = []

    def add(self, measured: Measured) -> None:
        """Keep what a step gave: sums over images for every loss and bucket, images, others."""
        buckets = torch.arange(BUCKETS, device=measured.level.device)
        of_image = (measured.level * BUCKETS).long().clamp(max=BUCKETS - 1)
        is_in = (of_image == buckets[:, None]).float()
        # The norm is the same on every rank; the loss is that of its own images.
        norm = measured.gradient_norm * float(self._place.is_main)
        others = torch.stack([measured.loss / self._place.world, norm])
        sums = (is_in @ measured.terms.float().T).T.flatten()
        self._rows.append(torch.cat([sums, is_in.sum(dim=1), others]))

    def reduce(self) -> "Interval":
        """What all ranks measured since the last clearing; all of them have to ask together.

        Reducing twice changes nothing: rank 0 then holds the sums, and the others zeros.
        """
        if not self._rows:
            return Interval(self.names, np.empty((0, self._width)))
        rows = torch.stack(self._rows)
        if self._place.world > 1:
            torch.distributed.all_reduce(rows)
        share = rows if self._place.is_main else torch.zeros_like(rows)
        self._rows = list(share)
        return Interval(self.names, rows.cpu().numpy().astype(np.float64))

    @property
    def _width(self) -> int:
        return (len(self.names) + 1) * BUCKETS + len(OTHERS)

    @property
    def state(self) -> Tensor:
        """The rows of this rank, float32 [n, values], on the CPU."""
        return torch.stack(self._rows).cpu() if self._rows else torch.empty(0, self._width)

    def restore(self, state: Tensor) -> None:
        """Go on from rows that rank 0 has saved."""
        rows = state.to(self._place.device)
        self._rows = list(rows if self._place.is_main else torch.zeros_like(rows))

    def clear(self) -> None:
        self._rows = []


@dataclass(frozen=True)
class Interval:
    """Some steps, as all ranks measured them. rows: [n, values]."""

    names: tuple[str, ...]
    rows: npt.NDArray[np.float64]

    def nonfinite(self, *, gradients: bool) -> list[int]:
        """Which steps had a loss, or if asked for a gradient, that is infinite or not a number."""
        # The norm of the gradient is the last value.
        values = self.rows if gradients else self.rows[:, :-1]
        return np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()

    def values(self) -> dict[str, float]:
        """Means over the finite steps, and the number of the others."""
        rows = np.delete(self.rows, self.nonfinite(gradients=True), axis=0)
        values = {"skipped": float(len(self.rows) - len(rows))}
        if not len(rows):
            return values
        # Rows [n, values] become, summed over steps, M losses and the images in each bucket.
        *losses, images = rows[:, : -len(OTHERS)].sum(axis=0).reshape(-1, BUCKETS)
        others = dict(zip(OTHERS, rows[:, -len(OTHERS) :].mean(axis=0).tolist(), strict=True))
        values = {**others, **values}
        for name, sums in zip(self.names, losses, strict=True):
            values[name] = float(sums.sum() / images.sum())
            values.update(_by_bucket(name, sums, images))
        return values


def _by_bucket(
    name: str, sums: npt.NDArray[np.float64], images: npt.NDArray[np.float64]
) -> Iterator[tuple[str, float]]:
    """A loss at each level of noise that any image had, named NAME@from-to."""
    for number in np.flatnonzero(images).tolist():
        span = f"{number / BUCKETS:.2f}-{(number + 1) / BUCKETS:.2f}"
        yield f"{name}@{span}", float(sums[number] / images[number])


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
