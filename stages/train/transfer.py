"""Batches on their way to the device: the next one is copied while the present one is used."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

# A step to its batch in memory, valid until the next call; pinned if the device is a GPU.
Take = Callable[[int], list[Tensor]]


class Transfer:
    """Delivers the batch of any step on a device.

    take: gives it in memory; stop: the first step that is not fetched ahead. wait_seconds: spent
    waiting for `take` since the start.
    """

    def __init__(self, take: Take, device: torch.device, stop: int) -> None:
        self.wait_seconds = 0.0
        self._take = take
        self._device = device
        self._stop = stop
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: tuple[int, list[Tensor], torch.cuda.Event] | None = None

    def get(self, step: int) -> list[Tensor]:
        """The batch of a step; on a CPU valid until the next one."""
        if self._stream is None:
            return [tensor.to(self._device) for tensor in self._waited(step)]
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = self._copy(step, self._stream)
        _, tensors, copied = self._ahead
        compute = torch.cuda.current_stream(self._device)
        compute.wait_event(copied)
        for tensor in tensors:
            tensor.record_stream(compute)
        # The buffers of this batch are filled again once the next one is taken.
        copied.synchronize()
        self._ahead = self._copy(step + 1, self._stream) if step + 1 < self._stop else None
        return tensors

    def _copy(
        self, step: int, stream: torch.cuda.Stream
    ) -> tuple[int, list[Tensor], torch.cuda.Event]:
        """Start copying a batch; the event tells when it is there."""
        batch, copied = self._waited(step), torch.cuda.Event()
        with torch.cuda.stream(stream):
            tensors = [tensor.to(self._device, non_blocking=True) for tensor in batch]
            copied.record(stream)
        return step, tensors, copied

    def _waited(self, step: int) -> list[Tensor]:
        start = time.perf_counter()
        batch = self._take(step)
        self.wait_seconds += time.perf_counter() - start
        return batch
