"""The command that begins a project."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cache.files import write_atomically
from pipeline.cli.options import Debug
from pipeline.exits import ConfigError, reported_errors

PRESETS = {
    entry.name.removesuffix(".toml"): entry for entry in (files("pipeline") / "presets").iterdir()
}


def init(
    preset: Annotated[
        str, typer.Option(help=f"Which configuration to write: {', '.join(sorted(PRESETS))}.")
    ] = "demo",
    config: Annotated[Path, typer.Option(help="Where to write it.")] = Path("pipeline.toml"),
    debug: Debug = False,
) -> None:
    """Write a commented pipeline.toml from a preset, to be edited.

    Example: repa-cache init --preset imagenet256-sit-xl2
    """
    with reported_errors(debug):
        from pipeline.config import load_config
        from pipeline.extras import missing_packages
        from stages.setting_types import nearest

        if preset not in PRESETS:
            raise ConfigError(f"--preset: unknown name {preset!r}; {nearest(preset, PRESETS)}.")
        if config.exists():
            raise ConfigError(f"{config} exists already. Name another file with --config.")
        write_atomically(config, PRESETS[preset].read_bytes())
        typer.echo(f"{config}: the preset {preset}. Edit its paths, then run `repa-cache run`.")
        for problem in missing_packages("run", load_config(config, needs=())):
            typer.echo(f"  {problem}")
