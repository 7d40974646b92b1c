"""`repa-cache config`: all settings with their meaning."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands import arguments
from pipeline.commands.init import PRESETS


def config(path: Path | None = None, overrides: Sequence[str] = ()) -> str:
    """All settings of a file as commented TOML; by default of pipeline.toml, or of the demo."""
    from pipeline.config import checked, validated
    from pipeline.describing.documents import commented
    from pipeline.toml_documents import read_document

    place = path or arguments.DEFAULT_CONFIG
    is_demo = path is None and not place.exists()
    document = read_document(Path(str(PRESETS["demo"])) if is_demo else place)
    found = checked(validated(document, overrides, place, place.parent), place, needs=())
    typed = validated(document, (), place, Path())
    return commented(found, typed, document)


def command(
    path: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The configuration; default: pipeline.toml, or the demo if none is here.",
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            help="Print the JSON Schema instead, for an editor that knows taplo: with it beside "
            "pipeline.toml, the first line there is #:schema ./pipeline.schema.json",
        ),
    ] = False,
    overrides: arguments.Overrides = [],
) -> None:
    """Print all settings with their meaning: those of pipeline.toml, and defaults for the others.

    What it prints is a pipeline.toml itself.

    Example: repa-cache config --set sample.solver=heun

    Example: repa-cache config --schema > pipeline.schema.json
    """
    if schema:
        from pipeline.describing.described import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    typer.echo(config(path, overrides), nl=False)
