"""How fast this machine reads batches of a cache, and what that feeds."""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.placement import Placement
from stages.train.batches import ENDLESS, CachedBatches, Order
from stages.train.cached_data import CachedData
from stages.train.run import training_flops, transformer_config
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import CachedTensors, TrainSettings

MEASURE_SECONDS = 5.0
# What a well-tuned training step reaches on an H100: 40 % of its dense bfloat16 peak.
GPU_FLOPS = 400e12


@dataclass(frozen=True)
class Reading:
    """How many images a second can be read, in the order of training.

    cold: from the disk, nothing of it in memory; warm: the same batches once more; needed: by
    one GPU that trains the configured model.
    """

    image_bytes: int
    batch_size: int
    model: str
    cold: float
    warm: float
    needed: float


def measure_reading(settings: TrainSettings, tensors: CachedTensors) -> Reading:
    """Read batches for some seconds, twice; cold, each image at most once.

    Writes nothing. Asks the system to forget the cached pages of the files that are read.
    """
    reading = settings.reading.model_copy(update={"memory_gb": 0.0})
    data = CachedData(tensors, settings.encoders, verify=reading.verify)
    order = Order(settings.seed, settings.batch_size, settings.block_rows)
    place, arrays = Placement(torch.device("cpu")), RunTerms.of(settings).arrays
    with closing(CachedBatches(data, arrays, order, place, reading, ENDLESS)) as batches:
        for name in data.fingerprints:
            drop_cached_pages(tensors.path / name)
        epoch = max(len(data.valid) // settings.batch_size, 1)
        stop, cold = _read(batches, epoch)
        image_bytes = sum(t.nbytes for t in batches.take(0)) // settings.batch_size
        flops = training_flops(settings, transformer_config(settings, data), data.shape)
    with closing(CachedBatches(data, arrays, order, place, reading, ENDLESS)) as batches:
        _, warm = _read(batches, stop if stop < epoch else ENDLESS)
    size = settings.batch_size
    return Reading(image_bytes, size, settings.model, cold * size, warm * size, GPU_FLOPS / flops)


def drop_cached_pages(folder: Path, name: str = "c.*") -> None:
    """Ask the system to forget what it holds in memory of the files below a folder."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in (entry for entry in folder.rglob(name) if entry.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            # Pages that are not on disk yet cannot be forgotten.
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _read(batches: CachedBatches, most: int) -> tuple[int, float]:
    """Read at most so many steps for some seconds; returns where it stopped, and steps a second.

    The first step starts threads, opens files and shuffles an epoch: it counts if it is the only
    one.
    """
    first = min(1, most - 1)
    for step in range(first):
        batches.take(step)
    start, step, seconds = time.monotonic(), first, 0.0
    while step < most and seconds < MEASURE_SECONDS:
        batches.take(step)
        step, seconds = step + 1, time.monotonic() - start
    return step, (step - first) / seconds
