"""Sections whose keys depend on the name in one of them, as those of `[dataset]` on its source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import Discriminator, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from stages.setting_types import Settings


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
        """One schema for each class, of which the key's value chooses."""
        sections = []
        for own in dict.fromkeys(self.classes.values()):
            names = [name for name, other in self.classes.items() if other is own]
            section = handler(own.__pydantic_core_schema__)
            content = handler.resolve_ref_schema(section)
            content["properties"][self.key]["enum"] = names
            if self.name_in({}) not in names:
                content["properties"][self.key].pop("default", None)
                content["required"] = sorted({*content.get("required", ()), self.key})
            sections.append(section)
        return {"oneOf": sections, "discriminator": {"propertyName": self.key}}

    @property
    def union(self) -> Any:
        """The type of a section of any of these kinds."""
        members = dict.fromkeys(self.classes.values())
        tagged = [Annotated[own, Tag(own.__name__)] for own in members]
        return Annotated[reduce(or_, tagged), Discriminator(self.tag), self]


def kinds_among(metadata: Iterable[Any]) -> Kinds | None:
    """The kinds of a section in what its type is annotated with, None if there are none."""
    return next((one for one in metadata if isinstance(one, Kinds)), None)
