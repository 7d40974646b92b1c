"""All settings with their meaning: as a pipeline.toml, and as a page of the documents.

`python -m pipeline.describing.documents` writes it anew.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any, TypeAlias

from pipeline.describing.described import SCHEMA_FILE, SCHEMA_LINE, Section, Setting, sections
from pipeline.toml_documents import as_key, as_toml
from stages.setting_paths import as_written
from stages.setting_types import Settings

COLUMNS = 100
# A section of the configuration, of the same as it is typed, and of the document.
Sources: TypeAlias = tuple[Any, Any, Mapping[str, Any]]
HEAD = f"""\
# Every setting, with its value or default; what is not set stands in comments. For completion and
# checks in an editor (Even Better TOML, taplo), make the schema and take this as the first line:
#   repa-cache config --schema > {SCHEMA_FILE}
#   {SCHEMA_LINE}"""
PAGE = Path(__file__).parents[1] / "settings.md"
PAGE_HEAD = """\
# All settings

Made from the descriptions in the code by `python -m pipeline.describing.documents`. The same
stands above each setting in what `repa-cache config` prints: your `pipeline.toml` with all defaults
filled in.
"""


def commented(
    config: Settings,
    typed: Settings,
    document: Mapping[str, Any],
    schema: Mapping[str, Any] | None = None,
) -> str:
    """The whole configuration in TOML, which means the same in the working folder.

    document: what the configuration was read from; typed: the same with paths in it relative to
    the working folder; schema: of its sections, by default pipeline.toml's.
    """
    lines = [HEAD]
    for section in sections(schema):
        found: Sources = (config, typed, document)
        for key in section.keys:
            found = _below(found, key)
        lines += ["", *_comment(section.description)]
        tables = list(_tables(section, found))
        for header, sources in tables:
            lines += [header, *_settings(section, sources), ""]
        if not tables:
            lines += [f"# {section.header}", *_settings(section, (None, None, {})), ""]
    return "\n".join(lines[:-1]) + "\n"


def _tables(section: Section, found: Sources) -> Iterator[tuple[str, Sources]]:
    """The tables of a section, of which there may be none or several, with their first lines."""
    match section.form:
        case "one":
            yield section.header, found
        case "named":
            for name in found[0]:
                yield f"[{'.'.join((*section.keys, as_key(name)))}]", _below(found, name)
        case "listed":
            for number in range(len(found[0])):
                yield section.header, _below(found, number)


def _below(sources: Sources, key: str | int) -> Sources:
    """What the sources have under a key or number."""
    config, typed, document = (_at(one, key) for one in sources)
    return config, typed, document


def _at(source: Any, key: str | int) -> Any:
    if isinstance(source, Mapping):
        return source.get(key, {})
    return source[key] if isinstance(key, int) else getattr(source, key)


def _settings(section: Section, sources: Sources) -> Iterator[str]:
    """The lines of a section's settings."""
    for setting in section.settings:
        value = _value(setting.key, *sources)
        # Of others, the value shows what they take.
        takes = f"({setting.values})" if value is None or setting.is_one_of_some else ""
        yield from ("", *_comment(f"{setting.description} {takes}"))
        if value is None:
            yield f"# {_unset(setting)}"
        else:
            yield from _assigned(setting.key, value)


def _assigned(key: str, value: Any) -> Iterator[str]:
    """The lines that give a setting its value; a long list has one for each of its items."""
    line = f"{key} = {as_toml(value)}"
    if len(line) <= COLUMNS or not isinstance(value, list | tuple):
        yield line
        return
    yield f"{key} = ["
    yield from (f"  {as_toml(item)}," for item in value)
    yield "]"


def _value(key: str, own: Any, typed: Any, told: Mapping[str, Any]) -> Any:
    """A setting as it was told, if it means the same in the working folder; None if it has none."""
    value: Any = getattr(own, key, None)
    if key not in told:
        return value.model_dump() if isinstance(value, Settings) else value
    return told[key] if getattr(typed, key) == value else as_written(Path(value))


def _unset(setting: Setting) -> str:
    """A setting that has no value, to be filled in."""
    default = setting.default
    shown = as_toml(default) if default is not None else "..."
    return f"{setting.key} = {shown}"


def _comment(text: str) -> list[str]:
    return wrap(text, COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def reference() -> str:
    """The page, a table for each section."""
    return PAGE_HEAD + "".join(f"\n{_table(section)}" for section in sections())


def _table(section: Section) -> str:
    rows = [" | ".join(row) for row in _rows(section)]
    head = "| setting | values | default | |\n|---|---|---|---|\n"
    title = f"## `{section.header}`\n\n{section.description}\n\n"
    return title + head + "".join(f"| {row} |\n" for row in rows)


def _rows(section: Section) -> Iterator[tuple[str, str, str, str]]:
    for setting in section.settings:
        yield f"`{setting.key}`", setting.values, _default(setting), setting.description


def _default(setting: Setting) -> str:
    if setting.is_required:
        return "required"
    return "" if setting.default is None else f"`{as_toml(setting.default)}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
