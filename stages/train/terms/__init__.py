"""Loss terms: each file has the settings of one kind, and what it computes."""

from typing import TYPE_CHECKING, Annotated

from pydantic import SerializeAsAny

from stages.setting_types import Registered
from stages.train.terms.denoising import NoiseAndVariance, Objective, Velocity
from stages.train.terms.nt_xent import NTXent
from stages.train.terms.repa import Repa
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from stages.train.train_settings import TrainSettings

# The kinds that an entry of `[[train.align]]` takes.
TERMS: dict[str, type[Term]] = {"repa": Repa, "nt-xent": NTXent}


# One of them, by its kind.
AnyTerm = Annotated[SerializeAsAny[Term], Registered("kind", TERMS)]


def objective_of(settings: "TrainSettings") -> Objective:
    """The denoising objective of a run."""
    if settings.family == "DiT":
        return NoiseAndVariance()
    return Velocity(interpolant=settings.interpolant, distribution=settings.times)
