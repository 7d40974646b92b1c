"""Loss terms: each file has the settings of one kind, and what it computes."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo
from pydantic_core import PydanticCustomError

from stages.setting_types import nearest
from stages.train.terms.denoising import NoiseAndVariance, Objective, Velocity
from stages.train.terms.nt_xent import NTXent
from stages.train.terms.repa import Repa
from stages.train.terms.term import Term

if TYPE_CHECKING:
    from stages.train.train_settings import TrainSettings

# The kinds that an entry of `[[train.align]]` takes.
TERMS: dict[str, type[Term]] = {"repa": Repa, "nt-xent": NTXent}


def _of_its_kind(value: object, info: ValidationInfo) -> object:
    """An entry of `[[train.align]]` as the term that its kind names."""
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if kind is None:
        raise PydanticCustomError("kind", "name its kind: {kinds}", {"kinds": ", ".join(TERMS)})
    if kind not in TERMS:
        hint = nearest(str(kind), TERMS)
        raise PydanticCustomError(
            "kind", "unknown kind {kind}; {hint}", {"kind": repr(kind), "hint": hint}
        )
    if info.mode == "json":
        return TERMS[kind].model_validate_json(json.dumps(value), context=info.context)
    return TERMS[kind].model_validate(value, context=info.context)


# One of `TERMS`, by its kind.
AnyTerm = Annotated[SerializeAsAny[Term], BeforeValidator(_of_its_kind)]


def objective_of(settings: "TrainSettings") -> Objective:
    """The denoising objective of a run."""
    if settings.family == "DiT":
        return NoiseAndVariance()
    return Velocity(interpolant=settings.interpolant, distribution=settings.times)
