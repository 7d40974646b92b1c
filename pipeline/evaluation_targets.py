"""What `repa-cache evaluate` is to judge, and by whose configuration."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, checked, validated
from pipeline.exits import ConfigError
from pipeline.report.records import is_run
from pipeline.required_files import Need
from pipeline.stored_configs import run_config
from stages.evaluate.results import EvaluateError
from stages.weights.checkpoint import find, latest
from stages.weights.run_folder import samples_path


@dataclass(frozen=True)
class Target:
    """Samples to judge.

    samples: a folder or a file, or None for those of the run's newest checkpoint; run: that they
    belong to, if there is one; config: by which they would be drawn now, if any.
    """

    samples: Path | None
    run: Path | None
    config: Config | None


def targets_of(paths: Sequence[Path], config: Config) -> list[Target]:
    """The samples at some paths, or of the run of a configuration, by which all are judged."""
    found = [_found(path) for path in paths] or [(None, config.train.run)]
    return [Target(samples, run, config) for samples, run in found]


def samples_of(target: Target) -> Path:
    """Where the samples of a target are.

    Those of a run are of its newest checkpoint, or the newest if no checkpoint is left. Raises
    CheckpointError or EvaluateError if there are none.
    """
    if target.samples is not None:
        return target.samples
    run = target.run
    assert run is not None
    drawn = sorted(samples_path(run, "").glob("[!.]*/"))
    if drawn and latest(run) is None:
        return drawn[-1]
    newest = samples_path(run, find(run, None).folder.name)
    if drawn and not newest.is_dir():
        raise EvaluateError(
            f"There is no {newest}",
            remedy="Run `repa-cache sample` first, or name others that are there: "
            f"{', '.join(map(str, drawn))}.",
        )
    return newest


def own_targets(
    paths: Sequence[Path], overrides: Sequence[str], needs: Collection[Need]
) -> list[Target]:
    """The samples at some paths, with the configurations that their runs keep.

    needs: what has to be there for the first of these. Raises ConfigError if one is not valid.
    """
    configs: dict[Path, Config] = {}
    found = [_found(path) for path in paths]
    for run in dict.fromkeys(run for _, run in found if run is not None):
        configs[run] = run_config(run, overrides, () if configs else needs)
    return [Target(samples, run, None if run is None else configs[run]) for samples, run in found]


def _found(path: Path) -> tuple[Path | None, Path | None]:
    """The samples and the run that are meant by a path, None for what it does not tell."""
    if is_run(path):
        return None, path
    run = path.absolute().parent.parent
    is_of_run = path.absolute().parent == samples_path(run, "") and is_run(run)
    return path, run if is_of_run else None


def configuration_of_none(overrides: Sequence[str], needs: Collection[Need]) -> Config:
    """All defaults, for samples that belong to no run, with a reference that is named.

    Raises ConfigError if there is none.
    """
    nowhere = Path("These settings")
    document = {
        "dataset": {"source": "sample-photos"},
        # Names of nothing, as the reference is another and no run is looked at.
        "cache": {"path": "no-cache"},
        "train": {"run": "no-run"},
    }
    config = checked(validated(document, overrides, nowhere, Path()), nowhere, needs=needs)
    if config.evaluate.reference is None:
        raise ConfigError(
            "Compared with what? These samples belong to no run, and there is no pipeline.toml "
            "here",
            remedy="Name a file or a folder with --reference.",
        )
    return config
