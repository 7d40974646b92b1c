"""Paths and addresses in settings."""

import os
import re
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic_core import PydanticCustomError

from cache.stores.addresses import Address
from cache.stores.places import SCHEMES, Place, StorePath, is_address

SCHEME = re.compile(r"(?P<name>[A-Za-z][\w+.-]*)://")
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


def literal(place: Place) -> str:
    """A place of the command line as it is written in a setting, whatever its characters."""
    return as_written(place.absolute() if isinstance(place, Path) else place)


def as_written(place: Path | Address) -> str:
    """A place as it is written in a setting, so that nothing in it is expanded."""
    return str(place).replace("$", "$$")


def anchored(path: object, info: pydantic.ValidationInfo) -> object:
    """A path as it is written, from the folder that a configuration's paths are relative to."""
    if not info.context or not isinstance(path, str):
        return path
    return str(info.context["folder"] / expanded(path))


def addressed(address: str, info: pydantic.ValidationInfo) -> str:
    """An address as it is written; what a configuration has kept was expanded already."""
    return expanded(address) if info.context else address


def _place(written: object, info: pydantic.ValidationInfo) -> object:
    if isinstance(written, Path | StorePath):
        return written
    if not isinstance(written, str):
        raise PydanticCustomError("string_type", "input should be a valid string")
    if not (scheme := SCHEME.match(written)):
        return anchored(written, info)
    address = addressed(written, info)
    if not is_address(address):
        raise ValueError(
            f"{scheme[0]!r} is followed by no bucket"
            if scheme["name"] in SCHEMES
            else f"{scheme[0]!r} is none of {', '.join(f'{name}://' for name in SCHEMES)}"
        )
    return StorePath(address)


# A path as written in pipeline.toml, relative to the folder of that file.
AnchoredPath = Annotated[Path, pydantic.BeforeValidator(anchored)]
# The same, or the address of a place in a store.
_Address = Annotated[
    pydantic.InstanceOf[StorePath],
    pydantic.PlainSerializer(str, when_used="json"),
    pydantic.WithJsonSchema({"type": "string", "format": "uri"}),
]
AnchoredPlace = Annotated[_Address | Path, pydantic.BeforeValidator(_place)]
