"""A build needs no more memory the longer it runs."""

import statistics
import threading
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch

from pipeline.config import Config
from stages.encode.build import build
from stages.encode.images import sources
from stages.encode.images.sources.source import DatasetSettings, SourceKind

IMAGES = 20_000
# What allocators keep back comes and goes by this much.
TOLERANCE_BYTES = 20e6


def synthetic(dataset: DatasetSettings) -> sources.Source:
    """Noise, drawn when it is read."""
    resolution = dataset.resolution

    def read(index: int) -> bytes:
        pixels = np.random.default_rng(index).integers(0, 256, 3 * resolution**2, np.uint8)
        return f"P6 {resolution} {resolution} 255\n".encode() + pixels.tobytes()

    keys = tuple(f"{index:06}" for index in range(IMAGES))
    return sources.Source(keys, np.arange(IMAGES, dtype=np.int32) % 10, tuple("0123456789"), read)


@pytest.mark.slow
def test_memory_stays_flat_over_many_images(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources.SOURCES, "imagefolder", SourceKind(synthetic))
    config = tiny(
        "cache.rows_per_shard=500",
        "build.batch_size=50",
        "dataset.pixels=true",
        "dataset.flip=true",
        "encoders.efficientnet-lite0.input_size=32",
        "train.align=[]",
    )
    used: list[int] = []
    done = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not done.wait(0.1):
            used.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        made = build(config.encode, torch.device("cpu"))
    finally:
        done.set()
        watcher.join()
    assert made.counts.images == IMAGES
    quarter = len(used) // 4
    early, late = statistics.median(used[quarter : 2 * quarter]), statistics.median(used[-quarter:])
    assert quarter > 20
    assert late - early < TOLERANCE_BYTES, (early, late)
