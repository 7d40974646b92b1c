"""What settings are written in: a TOML file, and `section.key=value` on the command line."""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from pipeline.exits import ConfigError

# A name that needs no quotes.
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# From here on digits are grouped by thousands.
MANY = 10_000
# How a file begins that is in another encoding, and says so.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_document(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError if it cannot be read as that."""
    try:
        return tomllib.loads(_text(path))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no {path}",
            remedy="Write one with `repa-cache init`, or name it with --config.",
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: brackets are nested too deeply.") from None


def _text(path: Path) -> str:
    try:
        # Editors put a mark before UTF-8 too, which says nothing.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        content = error.object
        marked = (name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark))
        if name := next(marked, None):
            raise ConfigError(f"{path} is {name} text: save it as UTF-8.") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}",
            remedy="Save it as UTF-8.",
        ) from None


def override(document: dict[str, Any], text: str) -> Sequence[str]:
    """Change a document by `section.key=value`; returns the keys that lead to the value.

    The value is TOML, or else a string without quotes. Raises ConfigError if it is neither.
    """
    name, equals, written = text.partition("=")
    *sections, key = keys = _keys(name)
    if not (equals and sections and all(keys)):
        raise ConfigError(f"--set {text}: expected section.key=value.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"--set {text}: is not UTF-8 text.")
    table: Any = document
    for section in sections:
        table = _below(table, section, text)
        if not isinstance(table, dict | list):
            raise ConfigError(f"--set {text}: {section} is no section.")
    if isinstance(table, list):
        _below(table, key, text)
        table[int(key)] = _value(written)
    else:
        table[key] = _value(written)
    return keys


def _below(table: Any, key: str, text: str) -> Any:
    """What a key leads to; in a list its number, which may be that of one more entry."""
    if isinstance(table, dict):
        return table.setdefault(key, {})
    if not key.isdecimal() or int(key) > len(table):
        raise ConfigError(f"--set {text}: the list has {len(table)} entries, counted from 0.")
    if int(key) == len(table):
        table.append({})
    return table[int(key)]


def _value(text: str) -> Any:
    try:
        ((_, value),) = tomllib.loads(f"value = {text}").items()
    except (ValueError, RecursionError):
        return text
    # 2026-01-31 is meant as the name of something: no setting takes dates.
    return text if isinstance(value, date | time) else value


def _keys(name: str) -> list[str]:
    """The keys of a dotted name; one that has dots itself stands in quotes, as in TOML."""
    keys = []
    try:
        table: Any = tomllib.loads(f"{name} = 0")
        while isinstance(table, dict):
            ((key, table),) = table.items()
            keys.append(key)
    except (ValueError, RecursionError):
        return name.split(".")
    return keys


def as_toml(value: Any) -> str:
    """A value as it is written into a TOML file: text, numbers, and lists and tables of these."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= MANY else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        pairs = (f"{as_key(key)} = {as_toml(one)}" for key, one in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def as_key(name: str) -> str:
    """A name as it is written before an equals sign or in brackets."""
    return name if BARE_KEY.fullmatch(name) else as_toml(name)


def copy_value(source: dict[str, Any], target: dict[str, Any], keys: Sequence[str]) -> None:
    """Put the value that keys lead to in one document into another of the same shape.

    Of a list all entries, since keys may have lengthened it.
    """
    key, *rest = keys
    if rest and isinstance(source[key], dict):
        copy_value(source[key], target[key], rest)
    else:
        target[key] = source[key]


def dates(document: Any, where: str = "") -> Iterator[str]:
    """A line for each date or time in a document: no setting takes one."""
    if isinstance(document, date | time):
        yield f"{where}: a date or time, {document}; a name stands in quotes"
        return
    if isinstance(document, list):
        document = dict(enumerate(document))
    for key, value in document.items() if isinstance(document, dict) else ():
        yield from dates(value, f"{where}.{key}".removeprefix("."))
