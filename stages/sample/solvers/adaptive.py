"""A solver for SiT that chooses its steps, for each image by itself.

B images, N the numbers of a latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat  # noqa: TC002 - pydantic reads it

from cache.errors import RepaCacheError
from stages.packages import needs
from stages.sample.solvers.solver import SolverOptions

if TYPE_CHECKING:
    from torch import Tensor

    from stages.sample.solvers.solver import Problem


class AdaptiveSolverError(RepaCacheError):
    """The library of the adaptive solver is not installed, or it found no solution."""


class Tolerances(SolverOptions):
    """What a solver that chooses its steps aims at."""

    tolerances: tuple[PositiveFloat, PositiveFloat] = (1e-6, 1e-3)
    """The error that a step may make: absolute, and relative to the latent."""


def dopri5(problem: Problem) -> Tensor:
    """The probability flow by the fifth-order method of Dormand and Prince.

    Steps are as long as the tolerances allow. Raises AdaptiveSolverError without torchode, or if
    an image does not come to an end.
    """
    torchode = _torchode()
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
        raise AdaptiveSolverError(
            f"dopri5 found no solution within sample.tolerances {list(tolerances)}",
            remedy="Make them larger, or choose another sample.solver.",
        )
    end: Tensor = found.ys[:, -1]
    return end.reshape(shape)


def _torchode() -> Any:
    try:
        import torchode
    except ModuleNotFoundError as error:
        raise AdaptiveSolverError(f"sample.solver: 'dopri5' {needs('torchode')}") from error
    return torchode
