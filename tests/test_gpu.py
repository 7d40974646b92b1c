from collections.abc import Callable
from contextlib import closing

import pytest
import torch

from pipeline.config import Config
from stages.placement import Placement
from stages.train.batches import CachedBatches

pytestmark = pytest.mark.gpu


def test_batches_on_the_gpu_are_those_on_the_cpu(trainable: Callable[..., Config]) -> None:
    config = trainable("train.steps=40")
    arguments = (config.tensors, config.train)
    with (
        closing(CachedBatches(*arguments, Placement(torch.device("cuda")))) as there,
        closing(CachedBatches(*arguments, Placement(torch.device("cpu")))) as here,
    ):
        for step in range(40):
            one, other = there.read(step), here.read(step)
            assert torch.equal(one.moments.cpu(), other.moments)
            assert torch.equal(one.labels.cpu(), other.labels)
            for tokens, expected in zip(one.tokens, other.tokens, strict=True):
                assert torch.equal(tokens.cpu(), expected)
