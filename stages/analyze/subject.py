"""What is analysed: a run's checkpoint, and the images of a cache that suits it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cache.captions import CAPTIONS
from cache.errors import StaleCacheError
from cache.layout import FEATURES, LATENTS, PIXELS
from cache.metadata import column_names, root_attributes, titles
from cache.order import evenly
from cache.reader import Cache, ColumnReader
from cache.stores.places import Place, place_of
from stages.analyze.analysis_options import AnalysisError, StateOptions
from stages.latents import LatentScaling, is_drawn, scaling_of, scaling_told
from stages.setting_types import nearest
from stages.train.cached_captions import CachedCaptions
from stages.train.terms.run_terms import RunTerms
from stages.train.train_settings import TrainSettings
from stages.weights.checkpoint import Checkpoint, find
from stages.weights.export_options import Weights
from stages.weights.run_folder import config_path, found_beside


@dataclass(frozen=True)
class Subject:
    """Hidden states to be analysed, and the features to compare them with.

    latents: the column the run was trained on; encoders: readers by name, in the order of the
    cache; diffused: readers, by name, of those of which the model takes something beside latents;
    rows: int64 [N], the images; blocks: counted from 1; notes: what is to be said; captions: that
    the model is told of images by, if it is.
    """

    run: Path
    found: Checkpoint
    options: StateOptions
    cache: Cache
    latents: ColumnReader
    encoders: Mapping[str, ColumnReader]
    diffused: Mapping[str, ColumnReader]
    rows: npt.NDArray[np.int64]
    blocks: tuple[int, ...]
    notes: tuple[str, ...]
    captions: CachedCaptions | None = None

    @cached_property
    def settings(self) -> TrainSettings:
        """The settings that the checkpoint was made with."""
        return self.found.settings

    @property
    def scaling(self) -> LatentScaling:
        """By which the model was trained."""
        kept = scaling_told(self.found.state.get("scaling"))
        own = scaling_of(self.latents.column, "factor") if kept is None else kept
        return replace(own, is_drawn=is_drawn(self.latents.column))

    @property
    def title(self) -> str:
        """A name for the weights that are analysed."""
        name, weights = self.found.folder.name, self.options.weights
        return name if weights is Weights.EMA else f"{name}-{weights}"

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """The classes of the images, [N]."""
        return self.cache.rows.label[self.rows]


def open_subject(run: Path, encoders: tuple[str, ...], options: StateOptions) -> Subject:
    """The checkpoint, the cache and the images of an analysis.

    encoders: names of those to compare with, none for all that are cached. Raises CheckpointError
    if the run has no such checkpoint, StaleCacheError if what the model takes is not in the cache
    as it was trained on it, AnalysisError if what is asked for does not fit the model or the cache.
    """
    found = find(run, options.step)
    path = options.cache or _cache_of(run)
    cache, built = Cache(path), found.state["columns"]
    names = find_encoders(path, encoders)
    readers = {name: cache.column(FEATURES + name) for name in names}
    diffuses = next(name for name in built if name.startswith(LATENTS) or name == PIXELS)
    latents = cache.column(diffuses)
    joint = RunTerms.of(found.settings).joint
    diffused = {name: cache.column(FEATURES + name) for term in joint for name in term.encoders}
    for reader in (latents, *diffused.values()):
        if reader.column.fingerprint != built[reader.column.name]:
            raise StaleCacheError(
                f"{reader.column.folder} was built by another recipe than what {found.folder} "
                "was trained on",
                remedy="Name the cache of the run with --cache.",
            )
    captions = _captions(found, cache)
    _check_labels(found, cache, options)
    notes = tuple(
        f"{name}: {path} has it by another recipe than the run was aligned to"
        for name, reader in readers.items()
        if built.get(FEATURES + name, reader.column.fingerprint) != reader.column.fingerprint
    )
    rows = spread_rows(
        [latents, *readers.values(), *diffused.values()],
        options.rows,
        captions.has_any if captions else None,
    )
    blocks = _blocks(found, options.blocks)
    return Subject(
        run, found, options, cache, latents, readers, diffused, rows, blocks, notes, captions
    )


def find_encoders(path: Place, wanted: tuple[str, ...]) -> list[str]:
    """Names of encoders in the cache at `path`: those wanted, or all. Raises AnalysisError."""
    root_attributes(path)
    names = titles(column_names(path), FEATURES)
    for name in wanted:
        if name not in names:
            hint = nearest(name, names) if names else "it has none"
            raise AnalysisError(f"{path} has no encoder {name!r}; {hint}.", where="--encoders")
    return list(wanted) or names


def check_has_encoders(path: Place, names: Collection[str]) -> None:
    """Raise AnalysisError if there is no encoder to look at in the cache at `path`."""
    if not names:
        raise AnalysisError(
            f"{path} has no encoder", remedy="Add a section [encoders.NAME] and build it."
        )


def _captions(found: Checkpoint, cache: Cache) -> CachedCaptions | None:
    """What the model is told of images by, if that is captions."""
    name = found.settings.text
    if name is None or not found.model.context_features:
        return None
    captions = CachedCaptions(cache.path, name, cache.rows, verify=False)
    if captions.column.fingerprint != found.state["columns"][f"{CAPTIONS}/{captions.column.name}"]:
        raise StaleCacheError(
            f"{captions.column.folder} was built by another recipe than what {found.folder} was "
            "trained on",
            remedy="Name the cache of the run with --cache.",
        )
    return captions


def spread_rows(
    readers: list[ColumnReader], count: int, are_told: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """At most `count` rows that hold tensors in every column, from all over the cache.

    Rows lie in a random permutation, so these are a random sample. are_told: which rows, [N], may
    be among them; by default all.
    """
    told = [] if are_told is None else [are_told]
    valid = np.flatnonzero(np.logical_and.reduce([*(reader.valid for reader in readers), *told]))
    return evenly(valid, count)


def _cache_of(run: Path) -> Place:
    """Where a run's configuration says that its cache lies."""
    file = config_path(run)
    try:
        path = place_of(json.loads(file.read_bytes())["cache"]["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(
            f"{file} does not say where the cache lies ({error})", remedy="Name it with --cache."
        ) from error
    there = found_beside(run, path) if isinstance(path, Path) else path
    if there is None:
        raise AnalysisError(
            f"The cache of {run}, {path}, is not there",
            remedy="If it has moved, name it with --cache.",
        )
    return there


def _check_labels(found: Checkpoint, cache: Cache, options: StateOptions) -> None:
    if not (options.is_conditional or found.model.has_null_class):
        raise AnalysisError(
            f"{found.folder} was trained without label dropping, and cannot do without labels",
            remedy=(
                "--conditional gives it those of the images; a probe then finds what it was told."
            ),
        )
    classes = len(cache.rows.classes)
    if found.model.context_features:
        return
    if options.is_conditional and classes != found.model.classes:
        raise AnalysisError(
            f"the model has {found.model.classes} classes, {cache.path} has {classes}",
            where="--conditional",
            remedy="Leave the option out, or name the cache of the run with --cache.",
        )


def _blocks(found: Checkpoint, wanted: tuple[int, ...]) -> tuple[int, ...]:
    depth = found.model.depth
    for block in wanted:
        if not 1 <= block <= depth:
            raise AnalysisError(
                f"the model has blocks 1 to {depth}, but no {block}.", where="--blocks"
            )
    return tuple(sorted(set(wanted))) or tuple(range(1, depth + 1))
