"""Solvers: from noise at time 1 to latents at time 0.

A field gives the velocity at a state and time. It is also told when the step began, because
that decides whether the step is guided, in both of its halves. The state is kept in float64,
as in the published sampler. B images, C latent channels, h and w the latent's sides.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from stages.train.interpolants import INTERPOLANTS

# (latents [B, C, h, w] in float64, time, start of the step) to the velocity, in float64.
Field = Callable[[Tensor, float, float], Tensor]
# Number of a step, counted from 0, to standard normals like the latents.
Noise = Callable[[int], Tensor]
# Field, noise at time 1, number of steps, interpolant and noise of steps to latents at time 0.
Solver = Callable[[Field, Tensor, int, str, Noise], Tensor]


def uniform_grid(steps: int) -> list[float]:
    """Times of the ordinary differential equation: equal steps from 1 to 0."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def euler(field: Field, state: Tensor, steps: int, *_: object) -> Tensor:
    """First-order steps of the probability flow."""
    for time, after in pairwise(uniform_grid(steps)):
        state = state + (after - time) * field(state, time, time)
    return state


def heun(field: Field, state: Tensor, steps: int, *_: object) -> Tensor:
    """Second-order steps of the probability flow; the last one is of first order."""
    for time, after in pairwise(uniform_grid(steps)):
        slope = field(state, time, time)
        ahead = state + (after - time) * slope
        if after > 0:
            slope = (slope + field(ahead, after, time)) / 2
            ahead = state + (after - time) * slope
        state = ahead
    return state


def euler_maruyama(
    field: Field, state: Tensor, steps: int, interpolant: str, noise: Noise
) -> Tensor:
    """Steps of the reverse stochastic equation with diffusion 2t (SiT, eq. 6).

    The grid is even from 1 to 0.04 and then jumps to 0; the jump adds no noise.
    """
    grid = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    for number, (time, after) in enumerate(pairwise(grid)):
        diffusion = 2 * time
        velocity = field(state, time, time)
        drift = velocity - diffusion / 2 * score(interpolant, velocity, state, time)
        moved = state + (after - time) * drift
        if after > 0:
            moved = moved + math.sqrt(diffusion * (time - after)) * noise(number)
        state = moved
    return state


def score(interpolant: str, velocity: Tensor, state: Tensor, time: float) -> Tensor:
    """The gradient of the log density that belongs to a velocity (SiT, eq. 9)."""
    at = INTERPOLANTS[interpolant](torch.tensor(time, dtype=torch.float64))
    ratio = at.alpha / at.alpha_rate
    return (ratio * velocity - state) / (at.sigma**2 - ratio * at.sigma_rate * at.sigma)


# The names that `sample.solver` takes.
SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "euler-maruyama": euler_maruyama}
