"""The command that shows what a cache holds."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigPath, Debug, Overrides, load
from pipeline.exits import ConfigError, reported_errors

MOST_IMAGES = 64


def inspect(
    more: Annotated[
        list[str], typer.Argument(metavar="[KEY]...", help="More images, as after --rows.")
    ] = [],  # noqa: B006 - typer reads the default; nobody changes it
    keys: Annotated[
        list[str],
        typer.Option(
            "--rows", metavar="KEY...", help="Only these images: keys, parts of keys, classes."
        ),
    ] = [],  # noqa: B006
    neighbours: Annotated[
        int | None,
        typer.Option(min=0, metavar="K", help="Find the K nearest images; default with --rows: 8."),
    ] = None,
    among: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Look for them among N images; default: all, or 50,000 without class tokens.",
        ),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Write a page of pictures, and PNG files.")
    ] = False,
    images: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_IMAGES,
            metavar="N",
            help="Images on the page, or of a class.",
        ),
    ] = 8,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Draw the images at random; default: spread over the classes."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; default: NAME-inspect beside NAME.zarr."),
    ] = None,
    config: ConfigPath = Path("pipeline.toml"),
    overrides: Overrides = [],  # noqa: B006
    debug: Debug = False,
) -> None:
    """Show what a cache holds: its columns, single images, their neighbours, pictures of all.

    Example: repa-cache inspect --pictures
    """
    with reported_errors(debug):
        named = (*keys, *more)
        if neighbours and not (named or pictures):
            raise ConfigError("--neighbours: of which images? Name them with --rows.")
        settings = load("inspect", config, overrides)
        from pipeline.inspection.options import InspectOptions
        from pipeline.work import do_inspect

        wanted = (8 if named else 0) if neighbours is None else neighbours
        do_inspect(
            settings,
            InspectOptions(named, wanted, among, pictures, images, seed, out),
        )
