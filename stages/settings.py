"""What the sections of pipeline.toml have in common."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class Settings(BaseModel):
    """A section: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _anchor(path: Path, info: ValidationInfo) -> Path:
    return info.context["folder"] / path if info.context else path


# A path as written in pipeline.toml, relative to the folder of that file.
AnchoredPath = Annotated[Path, AfterValidator(_anchor)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest one if any is near, else all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5) or (
        difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"


def one_of(registry: str) -> AfterValidator:
    """A validator for a name from a registry, given as `module:variable`.

    The module is imported when a name is checked, so that reading a configuration does not
    import torch without need.
    """

    def check(name: str) -> str:
        module, _, variable = registry.partition(":")
        known: Iterable[str] = getattr(import_module(module), variable)
        if name not in known:
            raise ValueError(f"unknown name {name!r}; {nearest(name, known)}")
        return name

    return AfterValidator(check)
