"""Sections and settings with their descriptions, and the JSON Schema that has them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from pipeline.config import Config
from pipeline.toml_documents import as_toml

# Names that are not listed one by one.
MANY_NAMES = 12
# From here on a limit is there to catch mistakes, and says nothing of use.
LARGE = 2**20
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
SCHEMA_FILE = "pipeline.schema.json"
# The first line of a pipeline.toml that has its schema beside it, as taplo reads it.
SCHEMA_LINE = f"#:schema ./{SCHEMA_FILE}"
TYPES = {"integer": "whole number", "number": "number"}

Form: TypeAlias = Literal["one", "named", "listed"]


@dataclass(frozen=True)
class Setting:
    """One key of a section.

    schema: of its values; is_required: whether it has to be given; owners: the kinds of section
    that alone have it, none if all do; other_defaults: of kinds whose default is not the schema's.
    """

    key: str
    schema: Mapping[str, Any]
    is_required: bool
    owners: tuple[str, ...] = ()
    other_defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What it means, and of which kinds of section it is."""
        only = f" Only {', '.join(self.owners)}." if self.owners else ""
        others = ", ".join(
            f"{as_toml(one)} for {kind}" for kind, one in self.other_defaults.items()
        )
        own = f" By default {others}." if others else ""
        return f"{self.schema.get('description', '')}{own}{only}".strip()

    @property
    def values(self) -> str:
        """What it may be."""
        return in_words(self.schema)

    @property
    def is_one_of_some(self) -> bool:
        """Whether it is a name out of a few."""
        keys = {"enum", "const", "oneOf"}
        return any(keys & one.keys() for one in _parts(self.schema))

    @property
    def default(self) -> Any:
        """What it is where it is not set, None if that is nothing."""
        return self.schema.get("default")


@dataclass(frozen=True)
class Section:
    """A table of pipeline.toml.

    keys: that lead to it; form: whether it is one, or there are any number of them, each with a
    name or in a list.
    """

    keys: tuple[str, ...]
    description: str
    settings: tuple[Setting, ...]
    form: Form

    @property
    def header(self) -> str:
        """The line that begins it, with NAME for any name."""
        name = ".".join((*self.keys, "NAME") if self.form == "named" else self.keys)
        return f"[[{name}]]" if self.form == "listed" else f"[{name}]"


def sections(schema: Mapping[str, Any] | None = None) -> Iterator[Section]:
    """All sections, those within others after these; of a schema, by default pipeline.toml's."""
    whole = schema or json_schema()
    yield from _sections(whole, whole.get("$defs", {}), ())


def _sections(
    table: Mapping[str, Any], definitions: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[Section]:
    """The sections within a table."""
    for key, node in table["properties"].items():
        if (found := _tables(node, definitions)) is None:
            continue
        settings = tuple(_settings(found, definitions))
        yield Section((*keys, key), found.description, settings, found.form)
        if found.form == "one":
            yield from _sections(found.kinds[0], definitions, (*keys, key))


class _Tables(NamedTuple):
    """The schemas of a section: one of each kind, told apart by the value of a key."""

    form: Form
    description: str
    kinds: Sequence[Mapping[str, Any]]
    discriminator: str


def _tables(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> _Tables | None:
    """The tables that a schema is of, None if it is of a setting."""
    forms: dict[Form, Any] = {
        "named": node.get("additionalProperties"),
        "listed": node.get("items"),
        "one": node,
    }
    for form, schema in forms.items():
        if not isinstance(schema, dict):
            continue
        found = _resolved(schema, definitions)
        kinds = [_resolved(one, definitions) for one in found.get("oneOf", [found])]
        if "properties" in kinds[0]:
            discriminator = found.get("discriminator", {}).get("propertyName", "")
            return _Tables(form, {**found, **node}["description"], kinds, discriminator)
    return None


def _settings(found: _Tables, definitions: Mapping[str, Any]) -> Iterator[Setting]:
    """The settings of a section, whatever kind it is of.

    Among them are the tables within one of several sections, which are written into its lines.
    """
    kinds, discriminator = found.kinds, found.discriminator
    for key in dict.fromkeys(key for kind in kinds for key in kind["properties"]):
        having = [kind for kind in kinds if key in kind["properties"]]
        nodes = [_resolved(kind["properties"][key], definitions) for kind in having]
        within = _tables(nodes[0], definitions)
        if within is not None and found.form == "one":
            continue
        schema = {**nodes[0], "oneOf": within.kinds} if within is not None else dict(nodes[0])
        if key == discriminator:
            schema["enum"] = [name for node in nodes for name in node["enum"]]
        few = having if len(having) < len(kinds) else []
        owners = [name for kind in few for name in kind["properties"][discriminator]["enum"]]
        yield Setting(
            key,
            schema,
            is_required=all(key in kind.get("required", ()) for kind in kinds),
            owners=tuple(sorted(owners)),
            other_defaults={} if key == discriminator else _other_defaults(found, key),
        )


def _other_defaults(found: _Tables, key: str) -> dict[str, Any]:
    """The defaults of a setting that are not that of the first kind that has it, by kind."""
    having = [kind["properties"] for kind in found.kinds if key in kind["properties"]]
    first = having[0][key].get("default")
    return {
        name: own[key]["default"]
        for own in having
        if own[key].get("default", first) != first
        for name in own[found.discriminator]["enum"]
    }


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema with what it refers to, and its own description."""
    name = node.get("$ref", "").rpartition("/")[2]
    return {**definitions[name], **node} if name else node


def _parts(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a value is made of, or may be."""
    items = [schema["items"]] if "items" in schema else []
    return [schema, *schema.get("anyOf", ()), *items]


def in_words(schema: Mapping[str, Any]) -> str:
    """The values that a schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    if "oneOf" in schema:
        return " or ".join(map(_table_in_words, schema["oneOf"]))
    if names := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ", ".join(map(json.dumps, names)) if len(names) <= MANY_NAMES else "name"
    match schema["type"]:
        case "boolean":
            return "true or false"
        case "array":
            parts = map(in_words, schema.get("prefixItems", ()))
            return f"[{', '.join(parts) or in_words(schema['items']) + ', ...'}]"
        case "object":
            return f"{{NAME = {in_words(schema['additionalProperties'])}, ...}}"
        case "string":
            return str(schema.get("format", "text"))
    limits = {word: schema.get(key, LARGE) for key, word in BOUNDS.items()}
    bounds = [f"{word} {as_toml(limit)}" for word, limit in limits.items() if limit < LARGE]
    return f"{TYPES[schema['type']]} {' and '.join(bounds)}".rstrip()


def _table_in_words(schema: Mapping[str, Any]) -> str:
    """A table that is written into a line."""
    values = (f"{key} = {in_words(one)}" for key, one in schema["properties"].items())
    return f"{{{', '.join(values)}}}"


class _OfToml(GenerateJsonSchema):
    """Without what TOML does not have: a setting that is null is left out of it."""

    def generate(
        self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation"
    ) -> JsonSchemaValue:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        default = schema.get("default")
        if default is None or isinstance(default, BaseModel):
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def json_schema() -> dict[str, Any]:
    """The schema of a whole file, as JSON."""
    schema: dict[str, Any] = _joined(Config.model_json_schema(schema_generator=_OfToml))
    return {**schema, "title": "pipeline.toml of repa-cache"}


def _joined(node: Any) -> Any:
    """A schema with the lines of each description as one."""
    if isinstance(node, dict):
        return {
            key: " ".join(value.split())
            if key == "description" and isinstance(value, str)
            else _joined(value)
            for key, value in node.items()
        }
    return [_joined(one) for one in node] if isinstance(node, list) else node
