"""Solvers: from noise to clean latents.

To add one, write a function from a `Problem` to latents, and name it in `SOLVERS`; what it alone
takes of `[sample]` is a class of `SolverOptions` beside it. The state is kept in float64, as in the
published samplers. Modules of solvers import torch where they compute, since a configuration is
checked against the names and options here.
"""

from collections.abc import Mapping

from stages.sample.solvers import clean, flow, respaced
from stages.sample.solvers.solver import Solver

# The first of a family is its paper's.
SOLVERS: Mapping[str, Solver] = {
    "euler-maruyama": Solver("SiT", flow.euler_maruyama, has_grid=True),
    "euler": Solver("SiT", flow.euler, has_grid=True),
    "heun": Solver("SiT", flow.heun, has_grid=True),
    "dopri5": Solver("SiT", flow.dopri5, package="torchode", options=flow.Tolerances),
    "jit-heun": Solver("JiT", clean.heun),
    "jit-euler": Solver("JiT", clean.euler),
    "ddpm": Solver("DiT", respaced.ddpm, respaced.too_many_steps),
    "ddim": Solver("DiT", respaced.ddim, respaced.uneven_steps),
}
AUTO = "auto"
# What `sample.solver` takes.
NAMES = (AUTO, *SOLVERS)


def find_solver(name: str, family: str) -> str:
    """The solver meant by a name, for a family of models."""
    if name != AUTO:
        return name
    return next(name for name, solver in SOLVERS.items() if solver.family == family)
