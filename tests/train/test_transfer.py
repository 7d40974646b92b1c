"""Batches on their way to a GPU, of which a stand-in copies as late as it may."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from runs import trained
from torch import Tensor

from pipeline.config import Config
from stages.train.batches import CachedBatches, Transfer
from stages.train.step import Step

GPU = torch.device("cuda")


class Stream:
    """Work that is done once somebody waits for it, in order."""

    def __init__(self, _device: object = None) -> None:
        self.work: list[Callable[[], object]] = []

    def wait_event(self, event: "Event") -> None:
        self.work.append(event.synchronize)

    def run(self, until: int | None = None) -> None:
        work, self.work[:until] = self.work[:until], [lambda: None] * len(self.work[:until])
        for one in work:
            one()


class Event:
    """A place in the work of a stream."""

    def record(self, stream: Stream) -> None:
        self.stream, self.place = stream, len(stream.work)

    def synchronize(self) -> None:
        self.stream.run(self.place)


class Gpu:
    """Streams, of which one is the present one."""

    Event, Stream = Event, Stream

    def __init__(self) -> None:
        self.compute = self.present = Stream()

    def current_stream(self, _device: object = None) -> Stream:
        return self.present

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.present = self.present, stream
        yield
        self.present = before


class Pinned:
    """A tensor whose copy on the device is made when its stream comes to it."""

    def __init__(self, gpu: Gpu, values: Tensor) -> None:
        self._gpu, self.values = gpu, values

    def to(self, device: torch.device, *, non_blocking: bool) -> "Pinned":
        assert (device, non_blocking) == (GPU, True)
        copy = Pinned(self._gpu, torch.full_like(self.values, -1))
        self._gpu.present.work.append(lambda: copy.values.copy_(self.values))
        return copy

    def record_stream(self, stream: Stream) -> None:
        assert stream is self._gpu.compute


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for name in ("Event", "Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    return gpu


class Source:
    """Batches of the number of their step, all in one buffer; notes which were taken."""

    def __init__(self, gpu: Gpu) -> None:
        self._buffer = Pinned(gpu, torch.full((2,), -1))
        self.taken: list[int] = []

    def take(self, step: int) -> list[Any]:
        self.taken.append(step)
        self._buffer.values.fill_(step)
        return [self._buffer]


@pytest.mark.parametrize("prefetches", [True, False])
def test_no_buffer_is_filled_again_before_its_copy_has_ended(gpu: Gpu, prefetches: bool) -> None:
    source = Source(gpu)
    transfer = Transfer(source.take, GPU, stop=6)
    seen: list[list[int]] = []
    # Steps are taken up again from one that was not fetched ahead.
    steps = (0, 1, 2, 4, 5)
    for step in steps:
        (batch,) = transfer.get(step)
        gpu.compute.work.append(lambda batch=batch: seen.append(batch.values.tolist()))
        if prefetches:
            transfer.prefetch()
    assert seen == []
    gpu.compute.run()
    assert seen == [[step, step] for step in steps]


def test_the_next_batch_is_fetched_when_asked_for_and_none_behind_the_last(gpu: Gpu) -> None:
    source = Source(gpu)
    transfer = Transfer(source.take, GPU, stop=3)
    transfer.prefetch()
    for step in range(3):
        transfer.get(step)
        assert source.taken == list(range(step + 1))
        transfer.prefetch()
        assert source.taken == list(range(min(step + 2, 3)))


def test_training_fetches_the_next_batch_when_a_step_is_launched(
    trainable: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def noted(*arguments: Any) -> Any:
            done.append(name)
            return real(*arguments)

        monkeypatch.setattr(owner, name, noted)

    note(CachedBatches, "read")
    note(Step, "__call__")
    note(CachedBatches, "prefetch")
    trained(trainable("train.steps=2"))
    assert done == ["read", "__call__", "prefetch"] * 2
