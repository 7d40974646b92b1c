"""The sections of pipeline.toml that sampling and evaluation read."""

from typing import Annotated

from pydantic import NonNegativeFloat, PositiveInt, field_validator

from stages.settings import Seed, Settings, one_of


class SampleSettings(Settings):
    """`[sample]`: the defaults are the paper's.

    images: how many; solver, steps: of the differential equation; guidance: 1 for none;
    guidance_interval: the times at which guidance applies; grid: rows and columns of the
    picture. Labels are balanced: image i has the label i modulo the number of classes.
    """

    images: PositiveInt = 50_000
    solver: Annotated[str, one_of("stages.sample.solvers:SOLVERS")] = "euler-maruyama"
    steps: PositiveInt = 250
    guidance: NonNegativeFloat = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    batch_size: PositiveInt = 64
    grid: tuple[PositiveInt, PositiveInt] = (8, 8)
    seed: Seed = 0

    @field_validator("guidance_interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"expected 0 <= low <= high <= 1, got {low} and {high}")
        return interval


class EvaluateSettings(Settings):
    """`[evaluate]`: frechet_encoders are encoders in whose features samples are judged."""

    frechet_encoders: tuple[str, ...] = ()
