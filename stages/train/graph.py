"""The device's part of a step as one CUDA graph.

A step launches thousands of kernels, each of which costs the host some ten microseconds: small
models, and large ones in small batches, wait for the host. A graph is launched as a whole.
"""

from collections.abc import Callable

import torch

from stages.train.batches import Batch
from stages.train.meter import Measured
from stages.train.randomness import Draws

# What a step is made of on the device: no number that the host decides may change in it.
Work = Callable[[Batch, Draws], Measured]
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
        self._held: tuple[Batch, Draws, Measured] | None = None

    def __call__(self, batch: Batch, draws: Draws) -> Measured:
        if self._first_steps > 0:
            self._first_steps -= 1
            return self._unrecorded(batch, draws)
        held = self._held = self._held or self._recorded(batch, draws)
        torch._foreach_copy_([*held[0].tensors, *held[1].tensors], [*batch.tensors, *draws.tensors])
        self._graph.replay()
        return held[2]

    def _unrecorded(self, batch: Batch, draws: Draws) -> Measured:
        # On the stream of the recording, where autograd then finds what it has set up.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            measured = self._work(batch, draws)
        present.wait_stream(self._stream)
        for tensor in (*batch.tensors, *draws.tensors):
            tensor.record_stream(self._stream)
        for tensor in measured.tensors:
            tensor.record_stream(present)
        return measured

    def _recorded(self, batch: Batch, draws: Draws) -> tuple[Batch, Draws, Measured]:
        inputs = Batch.of(map(torch.clone, batch.tensors)), Draws(*map(torch.clone, draws.tensors))
        with torch.cuda.graph(self._graph, stream=self._stream):
            return *inputs, self._work(*inputs)
