"""The JSON Schema of pipeline.toml: completion and checks while it is written."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from pipeline.config import Config

SCHEMA_FILE = "pipeline.schema.json"
# The first line of a pipeline.toml that has its schema beside it, as taplo reads it.
SCHEMA_LINE = f"#:schema ./{SCHEMA_FILE}"


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
