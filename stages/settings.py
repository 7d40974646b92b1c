"""What the sections of pipeline.toml have in common."""

import difflib
from collections.abc import Iterable
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


def one_of(names: Iterable[str]) -> AfterValidator:
    """A validator for a name from a registry."""
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"unknown name {name!r}; {nearest(name, known)}")
        return name

    return AfterValidator(check)
