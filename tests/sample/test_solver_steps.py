"""Steps of solvers on a strict stand-in for a GPU: nothing mixes devices, nothing waits."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from methods import BASE, LAYERS
from strict import META, Strict

from stages.model.families import without_storage
from stages.model.transformer_config import TransformerConfig
from stages.sample.correction import Correction
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import Sampler


def copies(config: TransformerConfig, steps: int, **settings: Any) -> list[str]:
    """Those that are waited for while three images are drawn, in steps some of which are guided."""
    correction = Correction(0.05, torch.zeros(4, 8, 8, dtype=torch.float64), {})
    sampler = Sampler(
        SampleSettings(steps=steps, guidance=1.8, guidance_interval=(0.3, 0.8), **settings),
        without_storage(config).eval(),
        "linear",
        SimpleNamespace(channels=4),  # type: ignore[arg-type]
        META,
        correction=None if config.learns_sigma else correction,
    )
    with Strict() as watch:
        latents = sampler._solve([2, 3, 5])
    assert (latents.device, latents.dtype, latents.shape) == (META, torch.float64, (3, 4, 8, 8))
    return watch.copies


@pytest.mark.parametrize(
    ("solver", "config", "settings"),
    [
        ("euler", {}, {}),
        ("heun", {}, {}),
        ("euler-maruyama", {}, {}),
        ("euler-maruyama", LAYERS, {"guided_channels": 3, "time_shift": 2.0}),
        ("euler-maruyama", {"class_features": 5}, {"class_guidance": 2.2}),
        (
            "euler-maruyama",
            {"joint_channels": 3},
            {"guide_components": True, "representation_guidance": 1.4},
        ),
    ],
    ids=["euler", "heun", "euler-maruyama", "layers", "class-token", "components"],
)
def test_no_step_of_a_sit_waits(
    solver: str, config: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert copies(replace(BASE, **config), 4, solver=solver, **settings) == []


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_no_step_of_a_dit_waits(solver: str) -> None:
    config = replace(BASE, learns_sigma=True)
    tables = copies(config, 4, solver=solver)
    # Those of the schedule are copied once, before the first step.
    assert len(tables) == 6
    assert copies(config, 8, solver=solver) == tables
