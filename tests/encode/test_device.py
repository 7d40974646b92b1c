"""What a build does with its device: memory that runs out, and where the time goes."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.layout import Column
from stages.encode.building.columns import Maker
from stages.encode.building.encoding_device import Device, Job
from stages.encode.building.shard_making import Counts, Meter
from stages.encode.images.crop_batches import Crops
from stages.encode.networks.frozen_networks import FittingNetwork, compute


class SmallDevice:
    """A network for which more images than `room` are too many."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.attempts: list[int] = []

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.attempts.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"tokens": images.float() + 1}


def test_a_batch_that_does_not_fit_is_halved_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    network = SmallDevice(room=5)
    fitting = FittingNetwork("features/x", network)
    images = torch.arange(14)[:, None]
    for _ in range(2):
        torch.testing.assert_close(fitting(images)["tokens"], images.float() + 1)
    assert network.attempts == [14, 7, 4, 4, 4, 2, 4, 4, 4, 2]
    assert "features/x: out of memory; 4 images at a time from here on" in capsys.readouterr().err


def test_a_single_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        FittingNetwork("features/x", SmallDevice(room=0))(torch.zeros(3, 1))


def test_a_device_computes_one_batch_at_a_time() -> None:
    at_work, most = 0, 0

    def network(crops: Crops) -> dict[str, Tensor]:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        time.sleep(0.01)
        at_work -= 1
        return {"tokens": crops.images.float()}

    device = Device(torch.device("cpu"))
    maker = Maker("features/x", "tokens", {"storage": "float16"}, network)
    job = Job(Column("features/x", None, (), {}, 3, 8), maker, done=1)  # type: ignore[arg-type]
    crops = Crops.of(torch.ones(3, 3, 2, 2, dtype=torch.uint8))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(device.encode(crops, [job]).wait()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for (arrays,), (seconds,) in results:
        assert arrays["tokens"].shape == (2, 3, 2, 2)
        assert arrays["valid"].tolist() == [1, 1]
        assert seconds >= 0.01


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_overflow_in_half_precision_is_mended_by_who_waits_anyway(
    monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    calls: list[int] = []

    def layers(images: Tensor) -> dict[str, Tensor]:
        calls.append(len(images))
        scaled = images.flatten(2).mT @ torch.full((3, 4), 100.0)
        return {"tokens": scaled @ torch.full((4, 6), 1e-3)}

    maker = Maker(
        "features/x",
        "tokens",
        {"storage": storage},
        lambda crops: compute(layers, crops.images.float(), "float16"),
    )
    scale = {"channel_scale": np.ones(6, np.float32)}
    images = torch.ones(5, 3, 2, 2, dtype=torch.uint8)
    # 3 x 255 x 100 is more than half precision has.
    images[[1, 4]] = 255
    column = Column("features/x", None, (), {}, 5, 8, scale)  # type: ignore[arg-type]
    expected = maker.encode(Crops.of(images)[1:], scale)
    calls.clear()
    with monkeypatch.context() as waiting:
        waiting.setattr(Tensor, "__bool__", lambda _: pytest.fail("it waits"))
        encoded = Device(torch.device("cpu")).encode(Crops.of(images), [Job(column, maker, done=1)])
    assert calls == [4]
    ((arrays,), _) = encoded.wait()
    assert calls == [4, 2, 2]
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])
    assert np.isfinite(arrays["tokens"]).all()


def test_invalid_images_are_zeros_in_every_array() -> None:
    maker = Maker(
        "features/x",
        "tokens",
        {"storage": "int8"},
        lambda crops: {"tokens": torch.randn(len(crops), 4, 6), "class_token": torch.ones(2, 6)},
    )
    crops = Crops(torch.ones(2, 3, 2, 2, dtype=torch.uint8), np.array([False, True]))
    arrays = maker.encode(crops, {"channel_scale": np.ones(6, np.float32)})
    assert list(arrays) == ["tokens", "token_scale", "class_token", "valid"]
    for array in arrays.values():
        assert not array[0].any()
        assert array[1].any()
    assert {name: array.dtype for name, array in arrays.items()} == {
        "tokens": torch.int8,
        "token_scale": torch.float16,
        "class_token": torch.float16,
        "valid": torch.uint8,
    }


def test_a_meter_counts_what_threads_do_and_shows_it() -> None:
    shown: list[tuple[int, str]] = []
    meter = Meter(lambda images, note: shown.append((images, note)), devices=2)
    threads = [
        threading.Thread(target=meter.add, args=(Counts(images=1, bytes=500, device=1e-9),))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with meter.spending("disk"):
        time.sleep(0.01)
    assert list(meter.decoded(iter("ab"))) == ["a", "b"]
    assert meter.counts.images == 20
    assert meter.counts.disk >= 0.01
    assert sum(images for images, _ in shown) == 20
    assert shown[-1][1].endswith("10.0 kB")
