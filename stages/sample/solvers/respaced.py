"""Solvers for DiT on some of the 1000 steps that it was trained with.

B images, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from stages.model.sizes import DIFFUSION_STEPS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.model.diffusion import Schedule
    from stages.sample.solvers.solver import Problem


def ddpm(problem: Problem) -> Tensor:
    """Ancestral sampling with the variance that the model predicts (improved DDPM, section 4)."""
    times = even_times(problem.steps)
    state, schedule = problem.start, respaced(times, problem.start.device)
    for number, step in enumerate(reversed(range(len(times)))):
        time = float(times[step])
        predicted, fraction = problem.field(state, time, time).chunk(2, dim=1)
        state = schedule.mean(schedule.clean(state, step, predicted), state, step)
        if step > 0:
            deviation = (schedule.log_variance(fraction, step) / 2).exp()
            state = state + deviation * problem.noise(number)
    return state


def ddim(problem: Problem) -> Tensor:
    """Deterministic steps (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0)."""
    times = strided_times(problem.steps)
    state, schedule = problem.start, respaced(times, problem.start.device)
    for step in reversed(range(len(times))):
        time = float(times[step])
        predicted, _ = problem.field(state, time, time).chunk(2, dim=1)
        state = schedule.clean(state, step, predicted)
        if step > 0:
            signal, noise = (schedule.at(name, step - 1) for name in ("signal", "noise"))
            state = signal * state + noise * predicted
    return state


def even_times(count: int) -> list[int]:
    """A number of times from 0 to 999, both included, as even as whole numbers can be."""
    stride = (DIFFUSION_STEPS - 1) / max(count - 1, 1)
    times, position = [], 0.0
    for _ in range(count):
        times.append(round(position))
        # Added up as in the published code, whose rounding this is to share.
        position += stride
    return times


def strided_times(count: int) -> list[int]:
    """A number of times from 0 on with an equal stride, a whole number."""
    return list(range(0, DIFFUSION_STEPS, math.ceil(DIFFUSION_STEPS / count)))


def too_many_steps(count: int) -> str | None:
    """Whether there are more than the model was trained with."""
    return f"DiT has {DIFFUSION_STEPS} steps, got {count}" if count > DIFFUSION_STEPS else None


def uneven_steps(count: int) -> str | None:
    """Whether no stride gives this number of steps."""
    near = len(strided_times(count))
    if near == count:
        return None
    return f"ddim takes every n-th of {DIFFUSION_STEPS} steps, which never are {count}; take {near}"


def respaced(times: list[int], device: torch.device) -> Schedule:
    """The diffusion that goes through some times only (improved DDPM, section 4)."""
    from stages.model.diffusion import Schedule, linear_betas

    kept = (1 - linear_betas()).cumprod(0)[times]
    before = kept.roll(1)
    before[0] = 1
    return Schedule(1 - kept / before, device, kept.dtype)
