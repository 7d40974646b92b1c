"""`repa-cache init`: a configuration to begin with."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cache.files import write_atomically
from pipeline.commands import arguments
from pipeline.exits import ConfigError

SUFFIX = ".toml"
PRESETS, SWEEPS = (
    {
        entry.name.removesuffix(SUFFIX): entry
        for entry in folder.iterdir()
        if entry.name.endswith(SUFFIX)
    }
    for folder in (files("pipeline") / "presets", files("pipeline") / "presets" / "sweeps")
)
DEFAULT_PRESET = "demo"
# Over any preset.
SWEEP = files("pipeline") / "sweep" / "example.toml"


def init(preset: str = DEFAULT_PRESET, path: Path = arguments.DEFAULT_CONFIG) -> list[str]:
    """Write a preset as a configuration; returns a line for each package that it needs and lacks.

    Raises ConfigError if there is no such preset, or if there is such a file.
    """
    from pipeline.config import load_config
    from pipeline.requirements import missing_packages

    _check(preset)
    if path.exists():
        raise ConfigError(f"{path} exists already", remedy="Name another file with --config.")
    write_atomically(path, PRESETS[preset].read_bytes())
    return list(missing_packages("run", load_config(path, needs=())))


def _check(preset: str) -> None:
    from stages.setting_types import nearest

    if preset not in PRESETS:
        raise ConfigError(f"--preset: unknown name {preset!r}; {nearest(preset, PRESETS)}.")


def init_sweep(
    path: Path, config: Path = arguments.DEFAULT_CONFIG, preset: str = DEFAULT_PRESET
) -> None:
    """Write a sweep over a configuration: that of a preset, if it has one, or an example.

    Raises ConfigError if there is such a file, or no such preset.
    """
    from stages.setting_paths import as_written

    _check(preset)
    if path.exists():
        raise ConfigError(f"{path} exists already", remedy="Move it away, or edit it.")
    text = SWEEPS.get(preset, SWEEP).read_text(encoding="utf-8")
    written = text.replace('"pipeline.toml"', json.dumps(as_written(Path(config.name))))
    write_atomically(path, written.encode())


def command(
    preset: Annotated[
        str, typer.Option(help=f"Which configuration to write: {', '.join(sorted(PRESETS))}.")
    ] = DEFAULT_PRESET,
    config: Annotated[Path, typer.Option(help="Where to write it.")] = arguments.DEFAULT_CONFIG,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Write a sweep.toml beside it instead: the preset's.")
    ] = False,
) -> None:
    """Write a commented pipeline.toml from a preset, to be edited.

    Example: repa-cache init --preset imagenet256-sit-xl2
    """
    if sweep:
        path = config.with_name("sweep.toml")
        init_sweep(path, config, preset)
        typer.echo(f"{path}: variations of {config}. Edit them, then run `repa-cache sweep`.")
        return
    lacking = init(preset, config)
    typer.echo(f"{config}: the preset {preset}. Edit its paths, then run `repa-cache run`.")
    for problem in lacking:
        typer.echo(f"  {problem}")
