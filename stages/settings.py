"""What the sections of pipeline.toml have in common."""

import difflib
import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo


class Settings(BaseModel):
    """A section: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """A path as a shell reads it: with `~`, `~USER`, `$NAME` and `${NAME}`; `$$` is a dollar.

    Raises ValueError that names a variable or a user that there is none of.
    """
    if "\0" in text:
        raise ValueError("a path cannot have a character 0")
    text = VARIABLE.sub(_variable, text)
    whole = os.path.expanduser(text)  # noqa: PTH111 - which leaves unknown users as they are
    if text.startswith("~") and whole == text:
        raise ValueError(f"{text.split('/')[0]!r} has no home; a name may begin so after ./")
    return whole


def _variable(found: re.Match[str]) -> str:
    if found["dollar"]:
        return "$"
    name = found["braced"] or found["plain"]
    if name not in os.environ:
        raise ValueError(f"there is no environment variable {name!r}; a dollar is written $$")
    return os.environ[name]


def literal(path: Path) -> str:
    """A path of the command line as it is written in a setting, whatever its characters."""
    return str(path.absolute()).replace("$", "$$")


def _anchor(path: Path, info: ValidationInfo) -> Path:
    return info.context["folder"] / expanded(str(path)) if info.context else path


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
