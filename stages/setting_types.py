"""What the sections of pipeline.toml have in common."""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema


class Settings(BaseModel):
    """A section: strict types, finite numbers, unknown keys refused, immutable.

    The docstring of a section says what it is about, and the string under a field what that
    setting means: documents, the commented configuration and its schema are made of these.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """A path as a shell reads it: with `~`, `~USER`, `$NAME` and `${NAME}`; `$$` is a dollar.

    Raises ValueError if it is empty, or names a variable or a user that there is none of.
    """
    if "\0" in text:
        raise ValueError("a path cannot have a character 0")
    if not text:
        raise ValueError("a path cannot be empty; the folder itself is '.'")
    text = VARIABLE.sub(_variable, text)
    whole = os.path.expanduser(text)  # noqa: PTH111 - which leaves unknown users as they are
    if text.startswith("~") and whole == text:
        raise ValueError(f"{text.split('/')[0]!r} has no home; a name may begin so after ./")
    return whole


def _variable(found: re.Match[str]) -> str:
    if found["dollar"]:
        return "$"
    name = found["braced"] or found["plain"]
    if not (value := os.environ.get(name)):
        what = "not set" if value is None else "empty"
        raise ValueError(f"the environment variable {name!r} is {what}; a dollar is written $$")
    return value


def literal(path: Path) -> str:
    """A path of the command line as it is written in a setting, whatever its characters."""
    return as_written(path.absolute())


def as_written(path: Path) -> str:
    """A path as it is written in a setting, so that nothing in it is expanded."""
    return str(path).replace("$", "$$")


def _anchor(path: object, info: ValidationInfo) -> object:
    if not info.context or not isinstance(path, str):
        return path
    return str(info.context["folder"] / expanded(path))


# A path as written in pipeline.toml, relative to the folder of that file.
AnchoredPath = Annotated[Path, BeforeValidator(_anchor)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Of what is counted, or held in memory.
Count = Annotated[int, Field(gt=0, lt=2**31)]
# A limit that may be none: inf.
Unlimited = Annotated[float, Field(gt=0, allow_inf_nan=True)]
# Of threads and the like.
Few = Annotated[int, Field(gt=0, le=1024)]


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest one if any is near, else all of them."""
    known = sorted(names)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5) or (
        difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    )
    return f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"


@dataclass(frozen=True)
class OneOf:
    """A name from a registry, given as `module:variable`.

    The module is imported when a name is checked, so that reading a configuration does not
    import torch without need.
    """

    registry: str

    @property
    def names(self) -> list[str]:
        """All that there are."""
        module, _, variable = self.registry.partition(":")
        return list(getattr(import_module(module), variable))

    def check(self, name: str) -> str:
        """The name itself. Raises ValueError if the registry has none such."""
        if name not in (known := self.names):
            raise ValueError(f"unknown name {name!r}; {nearest(name, known)}")
        return name

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Checked as text, then as a name."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """One of a fixed list, for editors."""
        return {**handler(schema), "enum": self.names}
