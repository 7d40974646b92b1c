"""When training stops before its last step."""

import json
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from cache.errors import RepaCacheError
from cache.files import write_atomically
from cache.order import Rows
from stages.interrupt import StopRequest
from stages.placement import Placement
from stages.weights.run_folder import checkpoint_paths

SHOWN_ROWS = 8


class NonFiniteLossError(RepaCacheError):
    """A loss or gradient is infinite or not a number; the message names step and rows."""


class Agreement:
    """Whether any process was asked to stop: all have to leave the loop at the same step.

    Each step tells the others and reads what all told at the step before, so that nobody waits.
    """

    def __init__(self, request: StopRequest, place: Placement) -> None:
        self._request = request
        self._world = place.world
        self._told: tuple[torch.Tensor, torch.distributed.Work] | None = None

    def is_reached(self) -> bool:
        """To be asked once before every step, by all processes."""
        if self._world == 1:
            return bool(self._request)
        asked = False
        if self._told is not None:
            requests, work = self._told
            work.wait()
            asked = bool(requests)
        requests = torch.tensor(int(bool(self._request)))
        self._told = requests, torch.distributed.all_reduce(requests, async_op=True)
        return asked

    def close(self) -> None:
        """Wait for what was told last; to be asked once after the last step, by all processes.

        An exchange that nobody waits for would keep the processes from ending.
        """
        if self._told is not None:
            self._told[1].wait()
            self._told = None


def nonfinite_error(
    run: Path, step: int, rows: Rows, keys: npt.NDArray[Any], place: Placement
) -> NonFiniteLossError:
    """The error for a step; a file of the run lists the images of its batch.

    step: counted from 1, as in the log; rows: of the batch, over all processes; keys: of all
    images.
    """
    path = run / f"nonfinite-step-{step:08d}.json"
    images = {int(row): str(keys[row]) for row in rows}
    if place.is_main:
        write_atomically(path, json.dumps({"step": step, "images": images}, indent=1).encode())
    shown = ", ".join(f"{row} ({key})" for row, key in list(images.items())[:SHOWN_ROWS])
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    last = next(reversed(checkpoint_paths(run)), None)
    good = f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
    return NonFiniteLossError(
        f"step {step}: the loss or its gradient is infinite or not a number, and no weight was "
        f"changed by it. Rows of the batch: {shown}{more}; all are in {path}. {good}. Try a lower "
        'train.learning_rate, train.precision = "float32", or train.on_nonfinite = "skip".'
    )
