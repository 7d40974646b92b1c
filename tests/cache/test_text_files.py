import ast
from collections.abc import Iterator

from places import ROOT

PROGRAM = [path for name in ("cache", "pipeline", "stages") for path in (ROOT / name).rglob("*.py")]
# They open files too, but never as text.
BINARY = {
    *("Image.open", "archive.open", "kind.open", "os.open", "tarfile.open"),
    *("self._folder.open", "self._local.open"),
}


def opened_in_the_locale_s_encoding(source: str) -> Iterator[str]:
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        if name in BINARY or name.split(".")[-1] not in {"open", "read_text", "write_text"}:
            continue
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        said = {value.value for value in values if isinstance(value, ast.Constant)}
        if said.isdisjoint({"rb", "r+b", "wb", "xb", "ab", "utf-8", "utf-8-sig"}):
            yield f"line {call.lineno}: {ast.unparse(call)}"


def test_every_text_file_is_opened_as_utf_8_whatever_the_locale() -> None:
    assert len(PROGRAM) > 100
    found = {
        str(path.relative_to(ROOT)): lines
        for path in PROGRAM
        if (lines := list(opened_in_the_locale_s_encoding(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_the_search_finds_them() -> None:
    source = 'a.read_text()\nopen(b, "rb")\nopen(b)\nc.write_text("", encoding="utf-8")\n'
    assert list(opened_in_the_locale_s_encoding(source)) == [
        "line 1: a.read_text()",
        "line 3: open(b)",
    ]
