"""Every setting describes itself: in a commented configuration, a schema and the documents."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from marking import few_fast
from places import ROOT
from pydantic import ValidationError
from typer.testing import CliRunner

from pipeline.commands import app
from pipeline.commands.init import PRESETS
from pipeline.config import Config, load_config
from pipeline.describing.described import SCHEMA_LINE, Section, json_schema, sections
from pipeline.describing.documents import PAGE, commented, reference
from pipeline.setting_errors import error_lines
from pipeline.toml_documents import as_toml
from stages.encode.images.sources import SOURCES
from stages.encode.images.sources.tables import TableSettings
from stages.setting_types import Kinds, Settings

SECTIONS = {section.header: section for section in sections()}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["config", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def loaded(text: str, folder: Path) -> Config:
    path = folder / "printed.toml"
    path.write_text(text)
    return load_config(path, needs=())


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_setting_has_a_description(section: Section) -> None:
    assert section.description
    assert all(setting.schema.get("description") for setting in section.settings)


class Plain(Settings):
    kind: Literal["plain"]
    """Which."""
    weight: float = 1.0
    """How much."""


class Sharp(Plain):
    kind: Literal["sharp"]  # type: ignore[assignment]
    temperature: float
    """That it is divided by."""


SHAPES = Kinds("kind", {"plain": Plain, "sharp": Sharp})


class Listing(Settings):
    shapes: tuple[SHAPES.union, ...] = ()  # type: ignore[name-defined]
    """Any number of them."""


def test_a_list_of_kinds_is_described_and_its_mistakes_are_named() -> None:
    (section,) = sections(Listing.model_json_schema())
    assert (section.header, section.description) == ("[[shapes]]", "Any number of them.")
    assert [(setting.key, setting.owners) for setting in section.settings] == [
        ("kind", ()),
        ("weight", ()),
        ("temperature", ("sharp",)),
    ]
    entries = [{"kind": "sharp", "temperature": "x"}, {"kind": "plain", "temperature": 1.0}]
    document = {"shapes": [*entries, {"kind": "sharp", "wieghts": 1, "temperature": 1.0}]}
    with pytest.raises(ValidationError) as error:
        Listing.model_validate_json(json.dumps(document))
    assert error_lines(error.value, Listing, document) == [
        "shapes.0.temperature: input should be a valid number",
        "shapes.1.temperature: only the kind sharp takes this, not 'plain'",
        "shapes.2.wieghts: unknown key; did you mean 'weight'?",
    ]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_list_of_kinds_is_printed_as_tables(count: int) -> None:
    entries = [{"kind": "sharp", "temperature": 0.5}, {"kind": "plain", "weight": 2.0}][:count]
    document = {"shapes": entries}
    found = Listing.model_validate_json(json.dumps(document))
    text = commented(found, found, document, Listing.model_json_schema())
    again = Listing.model_validate_json(json.dumps(tomllib.loads(text)))
    assert again == found
    assert text.count("\n[[shapes]]\n") == count
    assert text.count("\n# [[shapes]]\n") == (count == 0)


def test_every_section_is_described() -> None:
    assert list(SECTIONS) == [
        *("[dataset]", "[cache]", "[latents]", "[encoders.NAME]"),
        *("[texts.NAME]", "[components.NAME]", "[build]", "[train]"),
        *(
            "[[train.align]]",
            "[train.pixels]",
            "[train.reading]",
            "[train.compute]",
            "[sample]",
            "[evaluate]",
        ),
    ]


@pytest.mark.parametrize("preset", few_fast(sorted(PRESETS), 3))
def test_the_commented_configuration_means_the_same(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipeline.toml").write_text(PRESETS[preset].read_text())
    text = printed()
    assert loaded(text, tmp_path) == load_config(tmp_path / "pipeline.toml", needs=())
    assert max(map(len, text.splitlines())) <= 100


def test_it_says_everything_and_what_was_set_as_it_was_set(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()
    monkeypatch.setenv("RUNS", "runs")
    overrides = (
        *("train.run=$RUNS/x$$", "train.init_from=~/w.pt"),
        'encoders."convnext_atto.d2_in1k"={weights = "w.pth", input_size = 64}',
    )
    text = printed(*(word for override in overrides for word in ("--set", override)))
    assert loaded(text, Path()) == load_config(Path("pipeline.toml"), overrides, needs=())
    for line in ('run = "$RUNS/x$$"', 'init_from = "~/w.pt"', 'path = "images"', "# split = ..."):
        assert f"\n{line}\n" in text
    for section in SECTIONS.values():
        for setting in section.settings:
            assert re.search(rf"^(# )?{setting.key} = ", text, re.MULTILINE)
            first = setting.description[:40].partition("\n")[0]
            assert first in " ".join(text.replace("\n# ", " ").split())


def test_a_configuration_elsewhere_is_printed_for_the_working_folder(
    tiny: Callable[..., Config], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny()
    path = images.parent / "pipeline.toml"
    path.write_text(path.read_text().replace('run = "run"', 'run = "$$5/run"'))
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    text = printed("--config", str(path), "--set", "train.init_from=w.pt")
    expected = load_config(path, ["train.init_from=w.pt"], needs=())
    assert loaded(text, Path()) == expected


def test_without_a_configuration_it_is_that_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = printed()
    assert loaded(text, Path()) == loaded(PRESETS["demo"].read_text(), Path())
    result = CliRunner().invoke(app, ["config", "--config", "pipeline.toml"])
    assert "There is no pipeline.toml" in result.output


def test_encoders_stand_in_comments_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipeline.toml").write_text(
        '[dataset]\nsource = "zip"\npath = "a.zip"\n[cache]\npath = "c.zarr"\n[train]\nrun = "r"\n'
    )
    text = printed()
    assert "\n# [encoders.NAME]\n" in text
    assert '\n# storage = "float16"\n' in text
    assert loaded(text, tmp_path).encoders == {}


@pytest.mark.parametrize(
    "value",
    [
        *(True, 0, -3, 12_345, 1.5, 1e-6, 1e300, math.inf, "", 'a"b\\c', "ä \x7f\t😀"),
        *([], [1, [2.0]], {}, {"a b": 1, "c": {"d.e": "f"}}),
    ],
)
def test_values_are_read_as_they_were_written(value: Any) -> None:
    (found,) = tomllib.loads(f"value = {as_toml(value)}").values()
    assert found == value
    assert type(found) is type(value)


def test_the_schema_lists_names_and_tells_kinds_apart() -> None:
    schema = json_schema()
    assert schema["required"] == ["dataset", "cache", "train"]
    kinds = schema["properties"]["dataset"]["oneOf"]
    sources = {source: kind for kind in kinds for source in kind["properties"]["source"]["enum"]}
    assert set(sources) == set(SOURCES)
    for source, kind in sources.items():
        assert ("split" in kind["properties"]) == (SOURCES[source].settings is TableSettings)
        assert ("path" in kind["properties"]) == (source != "sample-photos")
        assert kind["additionalProperties"] is False
    adaptive = next(
        kind
        for kind in schema["properties"]["sample"]["oneOf"]
        if "dopri5" in kind["properties"]["solver"]["enum"]
    )
    assert "tolerances" in adaptive["properties"]
    # Without a solver it is the other kind.
    assert adaptive["required"] == ["solver"]
    assert not re.search(r'"null"|: null', json.dumps(schema))
    assert json.loads(printed("--schema")) == schema


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_the_form_of_the_schema(schema: dict[str, Any], preset: str) -> None:
    document = tomllib.loads(PRESETS[preset].read_text())
    assert list(faults_of(document, schema, schema)) == []


def test_what_is_wrong_with_a_document_is_found_by_its_schema() -> None:
    document = tomllib.loads(PRESETS["demo"].read_text())
    document["dataset"]["split"] = "train"
    document["train"]["depth"] = "8"
    document["cache"]["rows"] = 8
    places = [place for place, _ in faults_of(document, json_schema(), json_schema())]
    assert places == ["dataset", "cache.rows", "train.depth"]


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def faults_of(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str = ""
) -> Iterator[tuple[str, Any]]:
    """Where a value is not as a schema says, as far as the schemas of this project say anything."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for choice in {"oneOf", "anyOf"} & set(schema):
        fitting = [one for one in schema[choice] if not list(faults_of(value, one, root))]
        if not fitting or (choice == "oneOf" and len(fitting) > 1):
            yield where, schema[choice]
        return
    expected = TYPES.get(schema.get("type", ""), (int, float))
    if not isinstance(value, expected) or value not in schema.get("enum", [value]):
        yield where, schema
    elif isinstance(value, dict):
        yield from faults_of_table(value, schema, root, where)
    elif isinstance(value, list):
        parts = schema.get("prefixItems") or [schema["items"]] * len(value)
        for one, part in zip(value, parts, strict=True):
            yield from faults_of(one, part, root, where)


def faults_of_table(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> Iterator[tuple[str, Any]]:
    for key in set(schema.get("required", ())) - set(value):
        yield f"{where}.{key}".strip("."), "required"
    for key, one in value.items():
        known = schema.get("properties", {}).get(key, schema["additionalProperties"])
        place = f"{where}.{key}".strip(".")
        yield from [(place, one)] if known is False else faults_of(one, known, root, place)


def test_the_page_of_all_settings_is_that_of_the_code() -> None:
    """If it is not: `python -m pipeline.describing.documents`."""
    assert PAGE.read_text("utf-8") == reference()


def test_the_line_that_switches_the_schema_on_is_named() -> None:
    for text in (printed(), (ROOT / "pipeline/README.md").read_text()):
        assert SCHEMA_LINE in text
    assert SCHEMA_LINE in " ".join(
        CliRunner().invoke(app, ["config", "--help"]).output.replace("│", "").split()
    )
