"""What is asked of any training on a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_equal_runs, trained

from pipeline.config import Config
from stages.placement import Placement
from stages.train.step import Step

GPU = Placement(torch.device("cuda"))
STEPS = ("train.device=cuda", "train.steps=8", "train.log_every=8")


def assert_never_waits(config: Config, patch: pytest.MonkeyPatch) -> None:
    """That no step of a run of eight waits for the GPU, once it is set up."""
    real, calls = Step.__call__, 0

    def watched(step: Step, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        # The first steps compile, and fill caches; the next one is recorded.
        torch.cuda.set_sync_debug_mode("error" if calls > 4 else "default")
        try:
            return real(step, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    patch.setattr(Step, "__call__", watched)
    trained(config, GPU)
    assert calls == 8


def assert_recorded_as_made(
    configured: Callable[..., Config], folder: Path, *settings: str
) -> None:
    """That steps of a graph are, to the bit, those that are launched kernel by kernel."""
    plain = configured(f"train.run={folder / 'plain'}", "train.compute.graph=false", *settings)
    trained(plain, GPU)
    trained(configured(*settings), GPU)
    assert_equal_runs(plain, configured(*settings))
