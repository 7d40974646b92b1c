"""Solvers for SiT: from noise at time 1 to latents at time 0, with fixed steps or adaptive ones.

B images, N the numbers of a latent.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import PositiveFloat  # noqa: TC002 - pydantic reads it

from stages.model.interpolants import INTERPOLANTS, shifted
from stages.packages import needs
from stages.sample.solvers.solver import SampleError, SolverOptions

if TYPE_CHECKING:
    from torch import Tensor

    from stages.sample.solvers.solver import Problem


def euler(problem: Problem) -> Tensor:
    """First-order steps of the probability flow."""
    state = problem.start
    for time, after in pairwise(_grid(problem, 0, problem.steps + 1)):
        state = state + (after - time) * problem.field(state, time, time)
    return state


def heun(problem: Problem) -> Tensor:
    """Second-order steps of the probability flow; the last one is of first order."""
    state = problem.start
    for time, after in pairwise(_grid(problem, 0, problem.steps + 1)):
        slope = problem.field(state, time, time)
        ahead = state + (after - time) * slope
        if after > 0:
            slope = (slope + problem.field(ahead, after, time)) / 2
            ahead = state + (after - time) * slope
        state = ahead
    return state


def euler_maruyama(problem: Problem) -> Tensor:
    """Steps of the reverse stochastic equation with diffusion 2t (SiT, eq. 6).

    The grid is even from 1 to 0.04 and then jumps to 0; the jump adds no noise.
    """
    state = problem.start
    grid = [*_grid(problem, 0.04, problem.steps), 0.0]
    for number, (time, after) in enumerate(pairwise(grid)):
        diffusion = 2 * time
        velocity = problem.field(state, time, time)
        drift = velocity - diffusion / 2 * score(problem.interpolant, velocity, state, time)
        moved = state + (after - time) * drift
        if after > 0:
            moved = moved + math.sqrt(diffusion * (time - after)) * problem.noise(number)
        state = moved
    return state


def _grid(problem: Problem, last: float, count: int) -> list[float]:
    """Times from 1 on with equal steps between them, and the last included, all of them shifted."""
    import torch

    times = shifted(torch.linspace(1, last, count, dtype=torch.float64), problem.shift)
    grid: list[float] = times.tolist()
    return grid


def score(interpolant: str, velocity: Tensor, state: Tensor, time: float) -> Tensor:
    """The gradient of the log density that belongs to a velocity (SiT, eq. 9)."""
    import torch

    at = INTERPOLANTS[interpolant](torch.tensor(time, dtype=torch.float64))
    ratio = at.alpha / at.alpha_rate
    return (ratio * velocity - state) / (at.sigma**2 - ratio * at.sigma_rate * at.sigma)


class Tolerances(SolverOptions):
    """What a solver that chooses its steps aims at."""

    tolerances: tuple[PositiveFloat, PositiveFloat] = (1e-6, 1e-3)
    """The error that a step may make: absolute, and relative to the latent."""


def dopri5(problem: Problem) -> Tensor:
    """The probability flow by the fifth-order method of Dormand and Prince.

    Steps are as long as the tolerances allow, which the host asks the device at each. Raises
    SampleError without torchode, or if an image does not come to an end.
    """
    try:
        import torchode
    except ModuleNotFoundError as error:
        raise SampleError(f"'dopri5' {needs('torchode')}", where="sample.solver") from error
    shape = problem.start.shape

    def velocity(time: Tensor, states: Tensor) -> Tensor:
        """Velocities [B, N] at times [B]."""
        return problem.field(states.reshape(shape), time, time).flatten(1)

    assert isinstance(problem.options, Tolerances)
    absolute, relative = tolerances = problem.options.tolerances
    term = torchode.ODETerm(velocity)
    solver = torchode.AutoDiffAdjoint(
        torchode.Dopri5(term=term),
        torchode.IntegralController(atol=absolute, rtol=relative, term=term),
    )
    ends = problem.start.new_ones(shape[0])
    found = solver.solve(
        torchode.InitialValueProblem(problem.start.flatten(1), t_start=ends, t_end=0 * ends)
    )
    if found.status.any():
        raise SampleError(
            f"dopri5 found no solution within sample.tolerances {list(tolerances)}",
            remedy="Make them larger, or choose another sample.solver.",
        )
    end: Tensor = found.ys[:, -1]
    return end.reshape(shape)
