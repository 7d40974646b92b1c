"""The device that encodes."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.layout import Column
from stages.encode.building.columns import Maker
from stages.encode.building.token_batches import Batch

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A column to make of a batch. done: images at its start that it has already."""

    column: Column
    maker: Maker
    done: int = 0


class Device:
    """Runs networks on one batch at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._constants: dict[str, dict[str, Tensor]] = {}

    def encode(self, batch: Batch, jobs: Sequence[Job]) -> "Encoded":
        """Compute columns of a batch; a GPU goes on with it after this returns."""
        is_cuda = self._device.type == "cuda"
        selected: AbstractContextManager[object] = (
            torch.cuda.device(self._device) if is_cuda else nullcontext()
        )
        with self._lock, selected:
            start = _now(is_cuda)
            there = batch.to(self._device)
            tensors = [_on_host(self._make(there, job), is_cuda) for job in jobs]
            return Encoded(tensors, start, _now(is_cuda))

    def _make(self, batch: Batch, job: Job) -> dict[str, Tensor]:
        column = job.column
        if column.name not in self._constants:
            # Once: a copy from ordinary memory has to wait for all that the device has to do.
            self._constants[column.name] = {
                name: torch.from_numpy(values).to(self._device)
                for name, values in column.constants.items()
            }
        return job.maker.encode(batch[job.done :], self._constants[column.name])


@dataclass(frozen=True)
class Encoded:
    """Tensors on their way from the device.

    start, end: moments in the device's own time, between which it was busy with them.
    """

    _tensors: Sequence[Mapping[str, Tensor]]
    _start: Any
    _end: Any

    def wait(self) -> tuple[list[Arrays], float]:
        """The arrays of every column, and the seconds that the device was busy with them."""
        if isinstance(self._end, float):
            seconds = self._end - self._start
        else:
            self._end.synchronize()
            seconds = self._start.elapsed_time(self._end) / 1000
        arrays = [{n: np.asarray(t) for n, t in tensors.items()} for tensors in self._tensors]
        return arrays, seconds


def _on_host(tensors: Mapping[str, Tensor], is_cuda: bool) -> dict[str, Tensor]:
    """Copies, which on a GPU are there when an event that is recorded after them is."""
    return {name: tensor.to("cpu", non_blocking=is_cuda) for name, tensor in tensors.items()}


def _now(is_cuda: bool) -> Any:
    if not is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
