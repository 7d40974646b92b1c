"""What is measured of a machine does not count what happens once, when a process starts."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.layout import Column
from pipeline.config import Config
from pipeline.plan import reading_speed
from stages.encode.building.columns import Maker
from stages.encode.building.encoding_device import Job
from stages.encode.images.crop_batches import Crops
from stages.encode.images.sources import Source
from stages.encode.measuring import encode_speeds as speeds


class Clock:
    """Stands still but for what is said to take time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(time, "process_time", clock)
    return clock


@pytest.mark.parametrize("cost", [1e-3, 0.5, 30.0])
def test_a_network_is_as_fast_as_after_its_first_batch_of_a_size(
    tiny: Callable[..., Config], clock: Clock, cost: float
) -> None:
    sizes: list[int] = []

    def network(crops: Crops) -> dict[str, Tensor]:
        clock.now += cost * len(crops) + 50.0 * (not sizes) + 2.0 * (len(crops) not in sizes)
        sizes.append(len(crops))
        return {"tokens": crops.images.float()}

    maker = Maker("features/x", "tokens", {"storage": "float16"}, network)
    job = Job(Column("features/x", None, (), {}, 9, 8), maker)  # type: ignore[arg-type]
    settings = tiny("build.batch_size=4").encode
    images = partial(speeds._images, 32)
    found = speeds._seconds_per_row(settings, job, torch.device("cpu"), images)
    assert found == pytest.approx(cost)
    assert len(sizes) % 2 == 0


def test_decoding_does_not_count_the_first_images(
    tiny: Callable[..., Config], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, read = np.zeros((32, 32, 3), np.uint8), []

    def decode(_content: bytes) -> np.ndarray:
        clock.now += 0.1 + 50.0 * (not read)
        read.append(1)
        return pixels

    monkeypatch.setattr(speeds, "decode", decode)
    monkeypatch.setattr(speeds, "centre_crop", lambda image, _side: image)
    keys = tuple(map(str, range(100)))
    source = Source(keys, np.zeros(100, np.int32), ("x",), lambda _place: b"")
    settings = tiny("build.threads=1").encode
    found = speeds.measure_decoding(source, settings, 2.0)
    assert found.images_per_second == pytest.approx(10)
    assert found.core_seconds == pytest.approx(0.1)


class Batches:
    """The first takes long."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.taken: list[int] = []

    def take(self, step: int) -> None:
        self.clock.now += 0.5 if self.taken else 60.0
        self.taken.append(step)


@pytest.mark.parametrize("most", [1, 2, 1000])
def test_reading_does_not_count_the_first_batch_if_there_are_others(
    clock: Clock, most: int
) -> None:
    batches = Batches(clock)
    stop, rate = reading_speed._read(batches, most)
    assert rate == pytest.approx(1 / 60 if most == 1 else 2)
    assert stop == min(most, 11)
    assert batches.taken == list(range(stop))
