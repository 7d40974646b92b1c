"""Sections whose keys depend on the name in one of them, as those of `[dataset]` on its source."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from stages.setting_types import Settings, nearest


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
        """What a section that was written with the options of all kinds says of its own kind."""
        known = set[str]().union(*(own.model_fields for own in self.classes.values()))
        name = self.name_in(section)
        foreign = known.difference(self.classes[name].model_fields) if name in self.classes else ()
        return {option: value for option, value in section.items() if option not in foreign}

    def __get_pydantic_json_schema__(
        self, _schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _schema_of(self.key, self.classes, self.name_in({}), handler)

    @property
    def union(self) -> Any:
        """The type of a section of any of these kinds."""
        members = dict.fromkeys(self.classes.values())
        tagged = [Annotated[own, Tag(own.__name__)] for own in members]
        return Annotated[reduce(or_, tagged), Discriminator(self.tag), self]


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
        self, source: Any, handler: GetCoreSchemaHandler
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
        self, _schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return _schema_of(self.key, self.classes, None, handler)


def _schema_of(
    key: str,
    classes: Mapping[str, type[Settings]],
    default: str | None,
    handler: GetJsonSchemaHandler,
) -> JsonSchemaValue:
    """One schema for each class, of which the key's value chooses. default: of the key."""
    sections = []
    for own in dict.fromkeys(classes.values()):
        names = [name for name, other in classes.items() if other is own]
        section = handler(own.__pydantic_core_schema__)
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
