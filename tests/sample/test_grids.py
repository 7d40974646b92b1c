"""Sample grids that are drawn while a model is trained."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from runs import CPU, assert_equal_runs, drawn_into, trained

from pipeline.config import Config
from stages.sample.generate import GridDrawer
from stages.train.loop import train


def drawn(config: Config) -> list[Path]:
    drawer = GridDrawer(config.sample, config.train, config.latents, torch.device("cpu"))
    train(config.train, config.tensors, CPU, drawer)
    return sorted((config.train.run / "grids").iterdir())


def test_a_grid_of_the_same_noises_is_drawn_every_so_many_steps(
    trainable: Callable[..., Config],
) -> None:
    grids = drawn(trainable("train.grid_every=2"))
    assert [path.name for path in grids] == ["step-00000002.png", "step-00000004.png"]
    pictures = [np.asarray(Image.open(path)) for path in grids]
    assert pictures[0].shape == (2 * 32, 3 * 32, 3)
    assert (pictures[0] != pictures[1]).any()


def test_a_grid_shows_what_sampling_from_that_step_gives(trainable: Callable[..., Config]) -> None:
    config = trainable("train.grid_every=4")
    (grid,) = drawn(config)
    samples = drawn_into(config.train.run / "samples" / "last", config).samples
    assert grid.read_bytes() == samples.grid.read_bytes()


def test_a_dit_is_drawn_too(trainable: Callable[..., Config]) -> None:
    (grid,) = drawn(trainable("train.model=DiT-XS/2", "train.grid_every=4"))
    assert np.asarray(Image.open(grid)).std() > 1


def test_drawing_grids_changes_nothing_about_training(
    trainable: Callable[..., Config], tmp_path: Path
) -> None:
    drawn(trainable("train.grid_every=1"))
    plain = trainable(f"train.run={tmp_path / 'plain'}")
    trained(plain)
    assert_equal_runs(trainable(), plain)
