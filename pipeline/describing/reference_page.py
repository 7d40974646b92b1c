"""The page of the documents that lists every setting.

`python -m pipeline.describing.reference_page` writes it anew.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.describing.described import Section, Setting, sections
from pipeline.toml_documents import as_toml

PAGE = Path(__file__).parents[1] / "settings.md"
HEAD = """\
# All settings

Made from the descriptions in the code by `python -m pipeline.describing.reference_page`. The same
stands above each setting in what `repa-cache config` prints: your `pipeline.toml` with all defaults
filled in.
"""


def reference() -> str:
    """The page, a table for each section."""
    return HEAD + "".join(f"\n{_table(section)}" for section in sections())


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
