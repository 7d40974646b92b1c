"""Solvers run on a transformer, as the golden tensors were made."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stages.model.conditions import Condition
from stages.model.transformer import Transformer
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampler import guided_field, predicted
from stages.sample.solvers import SOLVERS
from stages.sample.solvers.flow import Tolerances
from stages.sample.solvers.solver import Field, Problem

GUIDANCE = {"plain": (1.0, (0.0, 1.0)), "cfg": (1.8, (0.0, 1.0)), "interval": (2.5, (0.2, 0.7))}


def solved(
    solver: str,
    field: Any,
    start: Tensor,
    steps: int = 8,
    path: str = "linear",
    noise: Callable[[int], Tensor] = lambda _: torch.zeros(()),
    tolerances: tuple[float, float] = (1e-6, 1e-3),
    shift: float = 1.0,
) -> Tensor:
    options = Tolerances(tolerances=tolerances)
    problem = Problem(field, start.double(), steps, path, noise, options, shift)
    with torch.no_grad():
        return SOLVERS[solver].solve(problem)


def guided(
    model: Transformer, given: Condition, null: Condition | None = None, **settings: Any
) -> Field:
    """What is told of images is by default their labels."""
    if null is None:
        assert isinstance(given, Tensor)
        null = torch.full_like(given, model.config.classes)
    predict = partial(predicted, model)
    return guided_field(predict, model.config, given, null, SampleSettings(**settings))
