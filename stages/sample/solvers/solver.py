"""What a solver is given, and what it gives.

B images, C latent channels, h and w the latent's sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cache.errors import RepaCacheError
from stages.setting_types import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# A number for all images, or one for each, [B].
Time: TypeAlias = "float | Tensor"
# Latents [B, C, h, w] in float64, their time, and when the step began, which decides whether it
# is guided, in all of its parts; to the model's prediction [B, C or 2C, h, w] in float64.
Field: TypeAlias = "Callable[[Tensor, Time, Time], Tensor]"


class SampleError(RepaCacheError):
    """Images cannot be drawn from this model in this way, or not into this folder."""


class SolverOptions(Settings):
    """What a solver takes of `[sample]` that others do not have: most take nothing."""


@dataclass(frozen=True)
class Problem:
    """From noise to clean latents.

    field: what the model predicts; start: standard normals [B, C, h, w] in float64; steps: how
    many to make; interpolant: of SiT; noise: number of a draw, counted from 0, to standard
    normals like `start`; options: of the class that the solver names; shift: of the times of its
    grid towards noise, if it has one.
    """

    field: Field
    start: Tensor
    steps: int
    interpolant: str
    noise: Callable[[int], Tensor]
    options: SolverOptions
    shift: float = 1.0


class Solver(NamedTuple):
    """A solver for a family of models: SiT, DiT or JiT.

    solve: gives clean latents [B, C, h, w] in float64; problem_with: what is wrong with a number
    of steps, if anything is; package: that it needs beyond those that are always installed;
    options: the settings that it has alone; has_grid: of times, which can be shifted.
    """

    family: str
    solve: Callable[[Problem], Tensor]
    problem_with: Callable[[int], str | None] = lambda _: None
    package: str | None = None
    options: type[SolverOptions] = SolverOptions
    has_grid: bool = False
