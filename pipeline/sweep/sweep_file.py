"""A sweep.toml, read: its runs with their configurations, and what does not fit together."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import Config, checked, config_error, validated
from pipeline.exits import ConfigError
from pipeline.requirements import missing_packages
from pipeline.setting_errors import error_lines
from pipeline.sweep import variations
from pipeline.sweep.contradictions import contradictions
from pipeline.sweep.sweep_settings import JudgeSettings, SweepSettings
from pipeline.sweep.variations import Dotted, as_overrides
from pipeline.toml_documents import dates, read_document
from stages.evaluate.evaluate_settings import INCEPTION_METRICS
from stages.setting_paths import as_written

RUN = "train.run"
# Sections of which every run has its own; the others are those of the one cache.
OWN_SECTIONS = ("train.", "sample.", "evaluate.")


@dataclass(frozen=True)
class SweepRun:
    """One run. Its folder bears its name.

    group: the name of all that differ from it in their seed alone; settings: that the sweep
    gives it, others than all runs have; overrides: all that the base needs to be its
    configuration, as after --set; judge: how it is judged.
    """

    name: str
    group: str
    settings: Dotted
    overrides: tuple[str, ...]
    config: Config
    judge: JudgeSettings

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.config.train.run

    @property
    def seed(self) -> int:
        """Of its weights, row order, noise and times."""
        return self.config.train.seed


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    path: of the file; base: the configuration that is varied, as it is to be named from the
    file's folder; cache_overrides: what the base needs to build the columns of all runs; config:
    that which does.
    """

    path: Path
    base: str
    settings: SweepSettings
    runs: tuple[SweepRun, ...]
    cache_overrides: tuple[str, ...]
    config: Config

    @property
    def place(self) -> Path:
        """The folder of the file, in which everything is started."""
        return self.path.absolute().parent

    @property
    def folder(self) -> Path:
        """Where the runs go."""
        return folder_of(self.settings, self.path)

    @property
    def metrics(self) -> list[str]:
        """The metrics that are measured, the first one first."""
        evaluate = self.config.evaluate
        known = INCEPTION_METRICS if evaluate.metrics is None else evaluate.metrics
        return [*known, *(f"fd_{name}" for name in evaluate.frechet_encoders)]

    @property
    def rungs(self) -> tuple[int, ...]:
        """The steps at which runs end early, in order; none if none do."""
        early = self.settings.early_stop
        steps = early.steps or self.settings.judge.steps
        return tuple(sorted(set(steps))) if early.enabled else ()

    def judged_steps(self, run: SweepRun) -> list[int]:
        """The steps at which a run is sampled and measured, its last one among them."""
        last = run.config.train.steps
        steps = {*self.settings.judge.steps, *self.rungs, last}
        return sorted(step for step in steps if step <= last)


def folder_of(settings: SweepSettings, path: Path) -> Path:
    """Where the runs of a sweep go."""
    return (settings.folder or path.parent / "runs" / path.stem).absolute()


def load_sweep(path: Path, *, early_stop: bool | None = None) -> Sweep:
    """Read and check a sweep with the configurations of all of its runs; writes nothing.

    early_stop: whether runs end early, by default as the file says. Raises ConfigError with
    everything that is wrong.
    """
    settings = _settings(path)
    if early_stop is not None:
        early = settings.early_stop.model_copy(update={"enabled": early_stop})
        settings = settings.model_copy(update={"early_stop": early})
    base = settings.base.absolute()
    document = read_document(base)
    sweep = _Reading(path, settings, base, document).sweep()
    if problems := list(contradictions(sweep)):
        raise config_error(path, problems)
    return sweep


def _settings(path: Path) -> SweepSettings:
    """The file by itself."""
    document = _document(path)
    if problems := list(dates(document)):
        raise config_error(path, problems)
    try:
        return SweepSettings.model_validate_json(
            json.dumps(document), context={"folder": path.absolute().parent}
        )
    except ValidationError as error:
        raise config_error(path, error_lines(error, SweepSettings, document)) from None


def _document(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(
            f"There is no {path}",
            remedy="`repa-cache init --sweep` writes one beside a pipeline.toml.",
        )
    return read_document(path)


@dataclass(frozen=True)
class _Reading:
    """A sweep that is being read. document: of the base."""

    path: Path
    settings: SweepSettings
    base: Path
    document: dict[str, Any]

    def sweep(self) -> Sweep:
        """The sweep. Raises ConfigError."""
        try:
            found = list(variations.combinations(self.settings))
            reference = self._config(as_overrides(self._common)).model_dump(mode="json")
        except ConfigError as error:
            raise config_error(self.path, _lines(error)) from None
        problems: dict[str, list[str]] = {line: [] for line in self._refused([s for _, s in found])}
        runs = []
        for variation, settings in found:
            try:
                runs.append(self._run(variation, settings, reference))
            except ConfigError as error:
                title = variation or " ".join(as_overrides(settings)) or variations.PLAIN
                for line in _lines(error):
                    titles = problems.setdefault(line, [])
                    titles += [] if title in titles else [title]
        for name in variations.repeated([run.name for run in runs]):
            problems[f"several runs would be called {name!r}: give variations a name each"] = []
        if problems:
            lines = (f"{_of_runs(names, len(found))}{line}" for line, names in problems.items())
            raise config_error(self.path, list(lines))
        shared = {name: one for run in runs for name, one in run.settings.items()}
        overrides = as_overrides({**_of_cache({**self._common, **shared}), **self._judging})
        base = self.base.relative_to(self._place) if self._is_below(self.base) else self.base
        return Sweep(
            self.path,
            str(base),
            self.settings,
            tuple(runs),
            tuple(overrides),
            self._config(overrides),
        )

    @property
    def _place(self) -> Path:
        return self.path.absolute().parent

    def _is_below(self, path: Path) -> bool:
        return path.is_relative_to(self._place)

    @property
    def _common(self) -> Dotted:
        return variations.dotted(self.settings.set)

    @property
    def _judging(self) -> Dotted:
        """The settings by which all runs are judged."""
        judge = self.settings.judge
        given = {
            "sample.images": judge.images,
            "evaluate.metrics": judge.metrics,
            "evaluate.frechet_encoders": judge.frechet_encoders,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _config(self, overrides: Sequence[str]) -> Config:
        """A variation of the base, each setting valid by itself."""
        # What is put into a document stays in it.
        document = deepcopy(self.document)
        return validated(document, overrides, self.base, self.base.parent, self._place)

    def _run(self, variation: str | None, own: Dotted, reference: Mapping[str, Any]) -> SweepRun:
        settings = {**self._common, **own, **self._judging}
        config = checked(self._config(as_overrides(settings)), self.base)
        if problems := list(missing_packages("run", config)):
            raise config_error(self.base, problems)
        changed = variations.differing(reference, config.model_dump(mode="json"), own)
        name = variations.run_name(variation, changed, self._grid)
        group = variations.run_name(variation, variations.group_of(changed), self._grid)
        folder = folder_of(self.settings, self.path) / name
        run = folder.relative_to(self._place) if self._is_below(folder) else folder
        overrides = as_overrides({**settings, RUN: as_written(run)})
        train = config.train.model_copy(update={"run": folder})
        config = config.model_copy(update={"train": train})
        return SweepRun(name, group, own, tuple(overrides), config, self.settings.judge)

    @property
    def _grid(self) -> frozenset[str]:
        return frozenset(variations.dotted(self.settings.grid))

    def _refused(self, settings: Sequence[Dotted]) -> Iterator[str]:
        """What runs cannot have of their own."""
        values: dict[str, set[str]] = {}
        for of_run in settings:
            for name, value in {**self._common, **of_run}.items():
                values.setdefault(name, set()).add(json.dumps(value))
        if RUN in values:
            yield f"{RUN}: runs have folders of their own, below `folder`"
        for name, several in values.items():
            if len(several) > 1 and not name.startswith(OWN_SECTIONS):
                yield _of_one_cache(name)


def _of_one_cache(name: str) -> str:
    if name.startswith("encoders."):
        return (
            f"{name}: a cache has one column of a name; give each its own section, with `model`, "
            "and vary train.align"
        )
    return f"{name}: all runs of a sweep are on one cache, and cannot differ in this"


def _of_cache(settings: Dotted) -> Dotted:
    """The settings that are not of a run alone."""
    return {name: one for name, one in settings.items() if not name.startswith(OWN_SECTIONS)}


def _of_runs(names: Sequence[str], count: int) -> str:
    """Which runs a line is about, if not all."""
    if not names or len(names) == count:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}: "


def _lines(error: ConfigError) -> list[str]:
    """The problems that an error lists, or itself."""
    first, *rest = str(error).splitlines()
    return [line.strip() for line in rest] if first.endswith("cannot be used:") else [str(error)]
