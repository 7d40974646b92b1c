"""Training from a cache is training with the encoder in the loop, but for how tokens are stored."""

from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from marking import few_fast
from online import OnlineBatches
from runs import cached_batches
from torch import Tensor

from pipeline.config import Config
from stages.encode.build import build
from stages.encode.images.crop_batches import Crops
from stages.placement import Placement
from stages.train.log import log_path, read_log
from stages.train.loop import train

CPU = Placement(torch.device("cpu"))
ENCODER = "efficientnet-lite0"
TOKENS = f"{ENCODER}/directions"
STEPS = 50
LOSSES = ("loss", "denoising", f"alignment/{ENCODER}")
# A float16 value is off by at most 2**-11 of itself, and a code of 127 by half a step. Most of it
# cancels in the mean over a batch's tokens; these are four times and more what is left in any of
# the steps, whose weights have drifted apart by then.
LARGEST_DIFFERENCE = {"float16": 2**-14, "int8": 2**-9}

in_every_storage = pytest.mark.parametrize("storage", few_fast(["int8", "float16"]))
with_and_without_mirrored_images = pytest.mark.parametrize("flip", ["false", "true"])


@pytest.fixture
def cached(tiny: Callable[..., Config], storage: str, flip: str) -> Callable[[str], Config]:
    """A finished cache, and a configuration for each run by its name."""
    settings = (
        f"encoders.{ENCODER}.storage={storage}",
        f"dataset.flip={flip}",
        f"train.steps={STEPS}",
        f"train.checkpoint_every={STEPS}",
    )
    build(tiny(*settings).encode, CPU.device)
    return lambda run: tiny(*settings, f"train.run={run}")


def losses(config: Config) -> npt.NDArray[np.float64]:
    """Of every step of a new run, [steps, losses]."""
    train(config.train, config.tensors, CPU)
    log = read_log(log_path(config.train.run))
    return np.array([[line[name] for name in LOSSES] for line in log])


@pytest.fixture
def losses_online(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config], npt.NDArray[np.float64]]:
    def measured(config: Config) -> npt.NDArray[np.float64]:
        with monkeypatch.context() as patch:
            online = partial(OnlineBatches, config.encode)
            patch.setattr("stages.train.loop.CachedBatches", online)
            return losses(config)

    return measured


def farthest(one: Tensor, other: Tensor) -> float:
    """One minus the smallest cosine between tokens."""
    return 1 - torch.cosine_similarity(one.double(), other.double(), dim=-1).min().item()


@in_every_storage
@with_and_without_mirrored_images
def test_a_batch_is_what_the_encoder_gives_for_its_images(
    cached: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    config = cached("run")
    monkeypatch.setattr("runs.CachedBatches", partial(OnlineBatches, config.encode))
    online_batches = cached_batches(config)
    monkeypatch.undo()
    with closing(cached_batches(config)) as stored, closing(online_batches) as online:
        for step in range(STEPS):
            batch, expected = stored.read(step), online.read(step)
            assert batch.keys() == expected.keys() == {"moments", "labels", TOKENS}
            assert torch.equal(batch["moments"], expected["moments"])
            assert torch.equal(batch["labels"], expected["labels"])
            assert not torch.equal(batch[TOKENS], expected[TOKENS])
            distance = farthest(batch[TOKENS], expected[TOKENS])
            assert distance < {"float16": 1e-7, "int8": 2e-4}[storage]


@pytest.mark.parametrize(
    ("storage", "flip"),
    [
        ("int8", "true"),
        pytest.param("float16", "false", marks=pytest.mark.slow),
        pytest.param("float16", "true", marks=pytest.mark.slow),
        pytest.param("int8", "false", marks=pytest.mark.slow),
    ],
)
def test_training_from_the_cache_is_training_with_the_encoder_online(
    cached: Callable[[str], Config],
    losses_online: Callable[[Config], npt.NDArray[np.float64]],
    storage: str,
) -> None:
    stored, online = losses(cached("stored")), losses_online(cached("online"))
    assert stored.shape == (STEPS, len(LOSSES))
    assert online[-1, -1] < online[0, -1] - 0.2, "nothing was learnt that could differ"
    np.testing.assert_allclose(stored, online, rtol=0, atol=LARGEST_DIFFERENCE[storage])


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8"])
@pytest.mark.parametrize("flip", ["true"])
def test_tokens_of_the_wrong_view_would_be_noticed(
    cached: Callable[[str], Config],
    losses_online: Callable[[Config], npt.NDArray[np.float64]],
    monkeypatch: pytest.MonkeyPatch,
    storage: str,
) -> None:
    stored = losses(cached("stored"))
    monkeypatch.setattr(Crops, "mirrored", lambda crops: crops)
    online = losses_online(cached("online"))
    assert abs(stored - online).max() > 4 * LARGEST_DIFFERENCE[storage]
