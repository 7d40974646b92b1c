"""What decides the bytes of a column, and its fingerprint.

A recipe holds everything that decides what is stored (model weights, preprocessing, crop, storage
type) and nothing that changes its last bits at most (devices, batch sizes, library versions).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

RecipeValue: TypeAlias = (
    "str | int | float | bool | list[RecipeValue] | dict[str, RecipeValue] | None"
)
Recipe: TypeAlias = Mapping[str, RecipeValue]

# Fields that caches had been written without, and what these were made by. A field that is added
# gets a line here, which stays as it is; it is written where it has another value, so that equal
# columns have equal recipes, whenever they were made.
DECLARED_DEFAULTS: dict[str, RecipeValue] = {
    "autoencoder_version": 1,
    "encoder_version": 1,
    "library": "timm",
}


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def written(recipe: Recipe) -> dict[str, RecipeValue]:
    """A recipe as it is stored: without the fields that have their declared defaults."""
    return {
        field: value
        for field, value in recipe.items()
        if field not in DECLARED_DEFAULTS or value != DECLARED_DEFAULTS[field]
    }


def fingerprint(recipe: Recipe) -> str:
    """The sha256 of the canonical JSON of a recipe as it is stored, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(written(recipe)).encode()).hexdigest()


def recipe_differences(found: Recipe, wanted: Recipe) -> list[str]:
    """One line per field of a cached column's recipe that is not as the configuration has it.

    A field that one of them lacks has its declared default there.
    """
    fields = found.keys() | wanted.keys()
    defaults = {field: DECLARED_DEFAULTS[field] for field in fields & DECLARED_DEFAULTS.keys()}
    return differences(defaults | dict(found), defaults | dict(wanted))


def differences(found: Recipe, wanted: Recipe, where: str = "cache") -> list[str]:
    """One line per field that differs, in order: `field: cache X, configuration Y`.

    where: what holds the values that were found, for the text.
    """
    return [
        f"{field}: {where} {_shown(found, field)}, configuration {_shown(wanted, field)}"
        for field in sorted(found.keys() | wanted.keys())
        if _shown(found, field) != _shown(wanted, field)
    ]


def _shown(recipe: Recipe, field: str) -> str:
    return canonical_json(recipe[field]) if field in recipe else "nothing"


def flatten(document: Recipe, prefix: str = "") -> dict[str, Any]:
    """The values in nested mappings and lists of them, by dotted name."""
    flat: dict[str, Any] = {}
    for key, content in document.items():
        value = content
        if isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
