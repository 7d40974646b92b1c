"""Training runs in tests: starting them, and what they left."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from cache.shared_memory import SharedMemory
from pipeline.config import Config
from stages.placement import Placement
from stages.sample.generate import Drawn, sample
from stages.sample.sampled_weights import SampleOptions
from stages.sample.samples import Samples
from stages.train.batches import CachedBatches, Order
from stages.train.cached_data import CachedData
from stages.train.log import SPEEDS, log_path, read_log
from stages.train.loop import Stretch, TrainSummary, train
from stages.train.step import Step
from stages.train.terms.run_terms import RunTerms
from stages.weights.checkpoint import Checkpoint, latest

CPU = Placement(torch.device("cpu"))


def cached_batches(
    config: Config, place: Placement = CPU, shared: SharedMemory | None = None
) -> CachedBatches:
    train = config.train
    order = Order(train.seed, train.batch_size, train.block_rows)
    data, arrays = CachedData(config.tensors, train.encoders), RunTerms.of(train).arrays
    stop = train.steps
    return CachedBatches(data, arrays, order, place, train.reading, stop, shared=shared)


def trained(config: Config, place: Placement = CPU) -> TrainSummary:
    return train(config.train, config.tensors, place)


def watched_step(
    config: Config, watch: AbstractContextManager[object], place: Placement = CPU
) -> None:
    """Make two steps of a run, the second, for which all is set up, while something watches."""
    train, cached = config.train, CachedData(config.tensors, config.train.encoders)
    stretch = Stretch(train, cached, place, None)
    step = Step(train, stretch._run, stretch._terms, cached, place)
    randomness = stretch.randomness()
    with closing(stretch._batches) as batches:
        for watching in (nullcontext(), watch):
            number = stretch._run.step
            batch, drawn = batches.read(number), randomness.at(number)
            with watching:
                stretch._meter.add(step(batch, drawn))


def log_values(config: Config) -> list[dict[str, float]]:
    """What the log says of every step, speeds left out."""
    log = read_log(log_path(config.train.run))
    return [{k: v for k, v in line.items() if k not in SPEEDS} for line in log]


def newest_of(run: Path) -> Checkpoint:
    found = latest(run)
    assert found is not None
    return found


def newest(config: Config) -> Checkpoint:
    return newest_of(config.train.run)


def assert_equal_runs(one: Config, other: Config) -> None:
    assert log_values(one) == log_values(other)
    for name in ("model", "ema"):
        theirs = newest(other).weights(name)
        for key, tensor in newest(one).weights(name).items():
            assert torch.equal(tensor, theirs[key]), (name, key)


def trained_in_parts(
    configure: Callable[..., Config], folder: Path, *settings: str, parts: tuple[int, int] = (2, 4)
) -> Config:
    """A run that was trained at once, as one that was resumed has to equal it to the bit.

    parts: the steps at which the latter is stopped, and ends.
    """
    whole = configure(*settings, f"train.steps={parts[-1]}", f"train.run={folder / 'whole'}")
    trained(whole)
    for steps in parts:
        resumed = configure(*settings, f"train.steps={steps}")
        trained(resumed)
    assert_equal_runs(whole, resumed)
    return whole


def assert_falls(config: Config, loss: str) -> None:
    """That a loss is less in the last quarter of a run than in the first."""
    values = [line[loss] for line in log_values(config)]
    quarter = max(1, len(values) // 4)
    assert sum(values[-quarter:]) < sum(values[:quarter])


def drawn_into(folder: Path, config: Config, **options: Any) -> Drawn:
    """What sampling with a configuration draws into a folder."""
    return sample(
        config.sample,
        SampleOptions(folder=folder, **options),
        config.train,
        config.decoder,
        CPU,
    )


def image_bytes(samples: Samples) -> list[bytes]:
    return [samples.path(index).read_bytes() for index in range(samples.images)]
