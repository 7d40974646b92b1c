"""The device that encodes, which nobody waits for but the thread that writes."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.layout import Column
from stages.encode.building.columns import Maker
from stages.encode.building.token_batches import Batch
from stages.encode.networks.frozen_networks import OVERFLOWN, noting_overflow

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
        self._is_cuda = device.type == "cuda"
        self._lock = threading.Lock()
        self._constants: dict[str, dict[str, Tensor]] = {}

    def encode(self, batch: Batch, jobs: Sequence[Job]) -> "Encoded":
        """Compute columns of a batch; a GPU goes on with it after this returns."""
        with self._selected(), noting_overflow():
            moments = [_now(self._is_cuda)]
            there, tensors = batch.to(self._device), []
            for job in jobs:
                tensors.append(_on_host(self._make(there[job.done :], job), self._is_cuda))
                moments.append(_now(self._is_cuda))
        return Encoded(self, batch, jobs, tensors, moments)

    def encode_again(self, batch: Batch, job: Job) -> Arrays:
        """A column of images that half precision failed for, computed at once."""
        with self._selected():
            made = self._make(batch.to(self._device), job)
            return {name: np.asarray(tensor.cpu()) for name, tensor in made.items()}

    @contextmanager
    def _selected(self) -> Iterator[None]:
        """The device, for one batch at a time."""
        with self._lock, torch.cuda.device(self._device) if self._is_cuda else nullcontext():
            yield

    @cached_property
    def name(self) -> str:
        """What computes: the model of the GPU, or the kind of device."""
        if self._is_cuda:
            return str(torch.cuda.get_device_name(self._device))
        return self._device.type

    def _make(self, batch: Batch, job: Job) -> dict[str, Tensor]:
        column = job.column
        if column.name not in self._constants:
            # Once: a copy from ordinary memory has to wait for all that the device has to do.
            self._constants[column.name] = {
                name: torch.from_numpy(values).to(self._device)
                for name, values in column.constants.items()
            }
        return job.maker.encode(batch, self._constants[column.name])


@dataclass(frozen=True)
class Encoded:
    """Tensors on their way from the device, for each job a column's.

    moments: in the device's own time, before the first column and after each.
    """

    _device: Device
    _batch: Batch
    _jobs: Sequence[Job]
    _tensors: Sequence[Mapping[str, Tensor]]
    _moments: Sequence[Any]

    def wait(self) -> tuple[list[Arrays], list[float]]:
        """The arrays of every column, and the seconds that the device was busy with each."""
        if isinstance(self._moments[-1], float):
            seconds = [end - start for start, end in pairwise(self._moments)]
        else:
            self._moments[-1].synchronize()
            seconds = [start.elapsed_time(end) / 1000 for start, end in pairwise(self._moments)]
        arrays = [self._finished(*made) for made in zip(self._jobs, self._tensors, strict=True)]
        return arrays, seconds

    def _finished(self, job: Job, tensors: Mapping[str, Tensor]) -> Arrays:
        """A column's arrays, with what half precision failed for in float32."""
        arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
        (overflown,) = np.nonzero(arrays.pop(OVERFLOWN, ()))
        if len(overflown):
            again = self._device.encode_again(self._batch[job.done :][overflown], job)
            for name, values in again.items():
                arrays[name][overflown] = values
        return arrays


def _on_host(tensors: Mapping[str, Tensor], is_cuda: bool) -> dict[str, Tensor]:
    """Copies, which on a GPU are there when an event that is recorded after them is."""
    return {name: tensor.to("cpu", non_blocking=is_cuda) for name, tensor in tensors.items()}


def _now(is_cuda: bool) -> Any:
    if not is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
