"""What the sections of pipeline.toml have in common; sections whose keys depend on a kind."""

import ast
import difflib
import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from itertools import zip_longest
from operator import or_
from textwrap import dedent
from typing import Annotated, Any

import pydantic
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema


class Settings(pydantic.BaseModel):
    """A section: strict types, finite numbers, unknown keys refused, immutable.

    The docstring of a section says what it is about, and the string under a field what that
    setting means: documents, the commented configuration and its schema are made of these.
    """

    model_config = pydantic.ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """With what each setting means; pydantic itself would read the source at every start."""
        section = handler(schema)
        properties = handler.resolve_ref_schema(section)["properties"]
        for name, meaning in _meanings(cls).items():
            properties[name]["description"] = meaning
        return section


def _meanings(section: type[Settings]) -> dict[str, str]:
    """The strings under the fields of a section, and of those it is made from."""
    found: dict[str, str] = {}
    for own in (one for one in reversed(section.__mro__) if issubclass(one, Settings)):
        lines: list[ast.stmt] = []
        # A class that was typed into an interpreter has no source.
        with suppress(OSError):
            (definition,) = ast.parse(dedent(inspect.getsource(own))).body
            assert isinstance(definition, ast.ClassDef)
            lines = definition.body
        for field, below in zip_longest(lines, lines[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found.pop(field.target.id, None)
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
# Of what is counted, or held in memory.
Count = Annotated[int, pydantic.Field(gt=0, lt=2**31)]
# A limit that may be none: inf.
Unlimited = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=True)]
# Of threads and the like.
Few = Annotated[int, pydantic.Field(gt=0, le=1024)]


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
        module, _, variable = self.registry.partition(":")
        return list(getattr(import_module(module), variable))

    def check(self, name: str) -> str:
        """The name itself. Raises ValueError if the registry has none such."""
        if name not in (known := self.names):
            raise ValueError(f"unknown name {name!r}; {nearest(name, known)}")
        return name

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "enum": self.names}


@dataclass(frozen=True)
class Kinds:
    """The kinds of a section.

    key: whose value names the kind; classes: the settings of each name.
    """

    key: str
    classes: Mapping[str, type[Settings]]

    def tag(self, section: Any) -> str:
        """The name of a section's class; of an unknown kind the class with the most settings.

        So the only mistake that is found in such a section is its unknown kind.
        """
        most = max(self.classes.values(), key=lambda own: len(own.model_fields))
        return self.classes.get(self.name_in(section), most).__name__

    def name_in(self, section: Any) -> str:
        """The kind that a section names, as settings or as a document, or leaves at its default."""
        default = next(iter(self.classes.values())).model_fields[self.key].default
        if isinstance(section, Mapping):
            return str(section.get(self.key, default))
        return str(getattr(section, self.key, default))

    def having(self, option: str) -> list[str]:
        """The names of the kinds that have an option."""
        return [name for name, own in self.classes.items() if option in own.model_fields]

    def read_by(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """What a section says of its own kind, whichever options there were when it was written.

        Those that it lacks have their defaults, and those of other kinds are left out.
        """
        known = set[str]().union(*(own.model_fields for own in self.classes.values()))
        name = self.name_in(section)
        if name not in self.classes:
            return dict(section)
        own = self.classes[name]
        foreign = known.difference(own.model_fields)
        said = {option: value for option, value in section.items() if option not in foreign}
        return {**own.model_construct().model_dump(mode="json"), **said}

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _schema_of(self.key, self.classes, self.name_in({}), handler)

    @property
    def union(self) -> Any:
        """The type of a section of any of these kinds."""
        members = dict.fromkeys(self.classes.values())
        tagged = [Annotated[own, pydantic.Tag(own.__name__)] for own in members]
        return Annotated[reduce(or_, tagged), pydantic.Discriminator(self.tag), self]


@dataclass(frozen=True)
class Registered:
    """A section of a kind that may be registered at any time, as those of `[[train.align]]`.

    key: whose value names the kind; classes: the settings of each name.
    """

    key: str
    classes: Mapping[str, type[Settings]]

    def class_of(self, section: Any) -> type[Settings] | None:
        """The settings that a section of a document names, if any."""
        return self.classes.get(str(section.get(self.key))) if isinstance(section, dict) else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.with_info_before_validator_function(self._made, handler(source))

    def _made(self, section: Any, info: core_schema.ValidationInfo) -> Any:
        if not isinstance(section, dict):
            return section
        if (own := self.class_of(section)) is None:
            raise ValueError(self._unknown(section.get(self.key)))
        if info.mode == "json":
            return own.model_validate_json(json.dumps(section), context=info.context)
        return own.model_validate(section, context=info.context)

    def _unknown(self, name: Any) -> str:
        names = ", ".join(self.classes)
        if name is None:
            return f"{self.key}: required, one of {names}"
        return f"{self.key}: unknown name {name!r}; {nearest(str(name), self.classes)}"

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _schema_of(self.key, self.classes, None, handler)


def _schema_of(
    key: str,
    classes: Mapping[str, type[Settings]],
    default: str | None,
    handler: pydantic.GetJsonSchemaHandler,
) -> JsonSchemaValue:
    """One schema for each class, of which the key's value chooses. default: of the key."""
    sections = []
    for own in dict.fromkeys(classes.values()):
        names = [name for name, other in classes.items() if other is own]
        section = own.__get_pydantic_json_schema__(own.__pydantic_core_schema__, handler)
        content = handler.resolve_ref_schema(section)
        content["properties"][key].pop("const", None)
        content["properties"][key]["enum"] = names
        if default not in names:
            content["properties"][key].pop("default", None)
            content["required"] = sorted({*content.get("required", ()), key})
        sections.append(section)
    return {"oneOf": sections, "discriminator": {"propertyName": key}}


def kinds_among(metadata: Iterable[Any]) -> Kinds | Registered | None:
    """The kinds of a section in what its type is annotated with, None if there are none."""
    return next((one for one in metadata if isinstance(one, Kinds | Registered)), None)
