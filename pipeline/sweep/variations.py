"""What a sweep varies: dotted settings, their combinations, and names of runs by these."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pipeline.exits import ConfigError
from pipeline.sweep.sweep_settings import SweepSettings
from pipeline.toml_documents import as_key, as_toml, override

# Values by dotted names, as they stand before and after the equals sign of --set.
Dotted = dict[str, Any]
SEED = "train.seed"
# What a run is called that differs in nothing.
PLAIN = "base"
# Of what a setting adds to a name, and of a whole name, in characters.
PART_LENGTH, NAME_LENGTH = 64, 120
DIGEST_LENGTH = 6
LACKING = object()


def dotted(document: Mapping[str, Any]) -> Dotted:
    """The settings of a document by their dotted names.

    A name may be written as one key in quotes, `"train.seed"`, as well as without these. Lists
    and empty tables are values.
    """
    return {name: value for key, below in document.items() for name, value in _leaves(key, below)}


def _leaves(key: str, value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    # Only at the top a key with dots is several: below, it is the name of an encoder.
    name = f"{above}.{as_key(key)}" if above else key
    if isinstance(value, Mapping) and value:
        for below, one in value.items():
            yield from _leaves(below, one, name)
    else:
        yield name, value


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """The settings as they are typed after --set."""
    return [f"{name}={as_toml(value)}" for name, value in settings.items()]


def combinations(settings: SweepSettings) -> Iterator[tuple[str | None, Dotted]]:
    """The settings of each run: of all runs, of a variation, and of a point of the grid.

    With the name of the variation, if it has one. Raises ConfigError for a grid without lists.
    """
    axes = dotted(settings.grid)
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{name}: expected a list of values, got {as_toml(values)}")
    for variation in settings.variations or (None,):
        own = dotted(variation.set) if variation else {}
        for values in product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            if both := sorted(own.keys() & point.keys()):
                raise ConfigError(f"{', '.join(both)}: varied by the grid and by a variation")
            yield variation.name if variation else None, {**own, **point}


def differing(
    reference: Mapping[str, Any], config: Mapping[str, Any], settings: Mapping[str, Any]
) -> Dotted:
    """Those of some settings by which a configuration differs from another one.

    reference, config: these two, with all defaults.
    """
    return {
        name: value for name, value in settings.items() if _at(reference, name) != _at(config, name)
    }


def _at(document: Mapping[str, Any], name: str) -> Any:
    """What a dotted name leads to, LACKING if that is nothing."""
    keys = override({}, f"{name}=0")
    found: Any = document
    for key in keys:
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return LACKING
    return found


def run_name(variation: str | None, changed: Mapping[str, Any], grid: Collection[str]) -> str:
    """A name of a folder by what differs from the base, the same whatever other runs there are.

    variation: its name, which stands for what it changes; grid: the settings of the grid.
    """
    parts = [
        _part(name, value) for name, value in changed.items() if variation is None or name in grid
    ]
    if variation:
        parts.insert(0, variation)
    return _cut(".".join(parts) or PLAIN, NAME_LENGTH, changed)


def _part(name: str, value: Any) -> str:
    """A setting in a name: `seed-1` for train.seed = 1."""
    key = name.removeprefix("train.")
    if found := re.fullmatch(r"align\.(\d+)\.(.+)", key):
        key = found[2] if found[1] == "0" else f"{found[2]}-{found[1]}"
    text = "-".join(_words(value))
    return _cut(_safe(f"{key}-{text}" if key != "align" else text or "plain"), PART_LENGTH, value)


def _words(value: Any) -> Iterator[str]:
    """A value in words: of a list of alignments, what each is told to be."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from () if key in ("kind", "encoder") else (key,)
            yield from _words(one)
    elif isinstance(value, list):
        yield from ("+".join("-".join(_words(one)) for one in value),) if value else ()
    else:
        yield str(value).lower() if isinstance(value, bool) else str(value)


def in_words(value: Any) -> str:
    """A value for people: of a list of alignments, what each is told to be."""
    if isinstance(value, list):
        return " + ".join(" ".join(_words(one)) for one in value) or "none"
    return " ".join(_words(value))


def _safe(text: str) -> str:
    """Text of characters that file systems take."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.") or "none"


def _cut(text: str, length: int, value: Any) -> str:
    """Text of at most some characters; what is cut is told apart by a digest of the value."""
    if len(text) <= length:
        return text
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return f"{text[: length - DIGEST_LENGTH - 1]}-{digest[:DIGEST_LENGTH]}"


def group_of(settings: Mapping[str, Any]) -> Dotted:
    """The settings that runs of different seeds have in common."""
    return {name: value for name, value in settings.items() if name != SEED}


def repeated(names: Sequence[str]) -> list[str]:
    """Names that file systems take for the same, each once."""
    lower = [name.lower() for name in names]
    return sorted({name for name in names if lower.count(name.lower()) > 1})
