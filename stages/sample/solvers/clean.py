"""Solvers for JiT, which predicts clean images: from noise at time 0 to images at time 1.

B images, S their side in px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.model.clean_images import LEAST_TIME_LEFT

if TYPE_CHECKING:
    from torch import Tensor

    from stages.sample.solvers.solver import Problem


def euler(problem: Problem) -> Tensor:
    """First-order steps."""
    state = problem.start
    for number in range(problem.steps):
        state = state + _velocity(problem, state, number) / problem.steps
    return state


def heun(problem: Problem) -> Tensor:
    """Second-order steps, each part guided as its own time says; the last one is of first order."""
    state = problem.start
    for number in range(problem.steps):
        slope = _velocity(problem, state, number)
        if number < problem.steps - 1:
            ahead = state + slope / problem.steps
            slope = (slope + _velocity(problem, ahead, number + 1)) / 2
        state = state + slope / problem.steps
    return state


def _velocity(problem: Problem, state: Tensor, number: int) -> Tensor:
    """Towards the image that is predicted at a place of the grid."""
    time, left = number / problem.steps, (problem.steps - number) / problem.steps
    return (problem.field(state, time, left) - state) / max(left, LEAST_TIME_LEFT)
