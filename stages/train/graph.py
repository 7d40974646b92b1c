"""The device's part of a step as one CUDA graph.

A step launches thousands of kernels, each of which costs the host some ten microseconds: small
models, and large ones in small batches, wait for the host. A graph is launched as a whole.
"""

from collections.abc import Callable

import torch

from stages.train.batches import Named
from stages.train.meter import Measured

# What a step is made of on the device, from a batch and what is drawn: no number that the host
# decides may change in it.
Work = Callable[[Named, Named], Measured]
# Steps before the one that is recorded, in which code is compiled and memory found.
FIRST_STEPS = 3


class Replayed:
    """Does the work of a step, from the fourth on as a recording of it.

    Equal to the work itself, bit by bit. What it returns is valid until the next call.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work = work
        self._first_steps = FIRST_STEPS
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        self._held: tuple[Named, Named, Measured] | None = None

    def __call__(self, batch: Named, drawn: Named) -> Measured:
        if self._first_steps > 0:
            self._first_steps -= 1
            return self._unrecorded(batch, drawn)
        self._held = self._held or self._recorded(batch, drawn)
        *held, measured = self._held
        for there, given in zip(held, (batch, drawn), strict=True):
            for name, tensor in given.items():
                there[name].copy_(tensor)
        self._graph.replay()
        return measured

    def _unrecorded(self, batch: Named, drawn: Named) -> Measured:
        # On the stream of the recording, where autograd then finds what it has set up.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            measured = self._work(batch, drawn)
        present.wait_stream(self._stream)
        for tensor in (*batch.values(), *drawn.values()):
            tensor.record_stream(self._stream)
        for tensor in measured:
            tensor.record_stream(present)
        return measured

    def _recorded(self, batch: Named, drawn: Named) -> tuple[Named, Named, Measured]:
        inputs = [{name: tensor.clone() for name, tensor in of.items()} for of in (batch, drawn)]
        with torch.cuda.graph(self._graph, stream=self._stream):
            return inputs[0], inputs[1], self._work(*inputs)
