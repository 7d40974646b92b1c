"""What pydantic finds wrong with a document, in words: where, what, and the nearest valid name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from stages.setting_types import Kinds, Registered, Settings, kinds_among, nearest


@dataclass(frozen=True)
class Place:
    """Where something is in a document.

    keys: that lead there; section: the settings that the last but one of them is the name of;
    kinds: those that this section could have been of.
    """

    keys: tuple[str | int, ...]
    section: type[Settings]
    kinds: Kinds | None = None

    @property
    def dotted(self) -> str:
        """As it is written after --set."""
        return ".".join(map(str, self.keys))


def error_lines(
    error: ValidationError, settings: type[Settings], document: Mapping[str, Any]
) -> list[str]:
    """A line for each mistake in the document of some settings."""
    return [_line(problem, settings, document) for problem in error.errors()]


def _line(problem: Any, settings: type[Settings], document: Mapping[str, Any]) -> str:
    place = _place(problem["loc"], settings, document)
    if problem["type"] == "extra_forbidden":
        return f"{place.dotted}: {_unknown(place, document)}"
    if problem["type"] == "missing":
        return f"{place.dotted}: required, but not given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place.dotted}: {message[0].lower()}{message[1:]}"


def _unknown(place: Place, document: Mapping[str, Any]) -> str:
    """What to say of a key that its section does not have."""
    *parents, key = place.keys
    if place.kinds is not None and (having := place.kinds.having(str(key))):
        section = _at(document, parents)
        kind, plural = place.kinds.key, "s" if len(having) > 1 else ""
        return (
            f"only the {kind}{plural} {', '.join(sorted(having))} take{'s'[len(plural) :]} this, "
            f"not {place.kinds.name_in(section)!r}"
        )
    return f"unknown key; {nearest(str(key), place.section.model_fields)}"


def _place(
    location: Sequence[str | int], settings: type[Settings], document: Mapping[str, Any]
) -> Place:
    """The place that pydantic means, which counts tags of kinds among its keys."""
    keys: list[str | int] = []
    section, kinds = settings, None
    # What the next part of the location is a key, a name, a number or a tag of.
    within: Any = settings
    for part in location:
        if isinstance(within, Registered):
            within = within.class_of(_at(document, keys))
        if isinstance(within, Kinds):
            kinds = within
            within = next(own for own in kinds.classes.values() if own.__name__ == part)
        elif part != "[key]":
            keys.append(part)
            if isinstance(within, type) and issubclass(within, Settings):
                section = within
                within = _below(within, str(part))
            else:
                within = _each(within)
    return Place(
        tuple(keys), section, kinds if kinds and section in kinds.classes.values() else None
    )


def _at(document: Any, keys: Sequence[str | int]) -> Any:
    """What keys lead to in a document."""
    for key in keys:
        document = document[key]
    return document


def _below(section: type[Settings], key: str) -> Any:
    """The type of a setting, or the kinds of a section."""
    field = section.model_fields.get(key)
    return field and (kinds_among(field.metadata) or field.annotation)


def _each(annotation: Any) -> Any:
    """The type of what a table with any names holds, or a list; or the kinds of these sections."""
    one = next((part for part in reversed(get_args(annotation)) if part is not Ellipsis), None)
    return kinds_among(getattr(one, "__metadata__", ())) or one
