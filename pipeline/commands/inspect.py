"""`repa-cache inspect`: what a cache holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import arguments
from pipeline.exits import ConfigError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.inspection.contents import Contents

MOST_IMAGES = 64


def inspect(config: "Config", *, is_configured: bool = True) -> "Contents":
    """What the cache holds.

    is_configured: whether it is to be what the configuration would build.
    """
    from pipeline.inspection.contents import gather_contents

    return gather_contents(config, is_configured=is_configured)


def command(
    cache: arguments.ChosenCache = None,
    keys: Annotated[
        list[str],
        typer.Option(
            "--rows", metavar="KEY...", help="Only these images: keys, parts of keys, classes."
        ),
    ] = [],
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
    config: arguments.ChosenConfig = None,
    overrides: arguments.Overrides = [],
) -> None:
    """Show what a cache holds: its columns, single images, their neighbours, pictures of all.

    A CACHE needs no configuration, which tells in addition what is not as configured, and for
    pictures where images and networks are.

    Example: repa-cache inspect demo.zarr --rows astronaut/28-7 rocket/0-0
    """
    if neighbours and not (keys or pictures):
        raise ConfigError("--neighbours: of which images? Name them with --rows.")
    if cache is not None and not cache.exists():
        raise ConfigError(f"There is no cache {cache}", remedy=f"Name images with --rows {cache}.")
    settings = arguments.load_for_cache("inspect", cache, config, overrides)
    from pipeline.inspection import gallery

    wanted = (8 if keys else 0) if neighbours is None else neighbours
    options = gallery.InspectOptions(tuple(keys), wanted, among, images, seed)
    contents = inspect(settings, is_configured=cache is None or config is not None)
    if not keys:
        gallery.show_contents(contents)
    if not (keys or pictures):
        return
    chosen = gallery.select(contents, options)
    if keys:
        gallery.show_images(chosen)
    if pictures:
        page = gallery.write_gallery(settings.encode, contents, chosen, out)
        typer.echo(f"{page}: {len(chosen.rows):,} images")
