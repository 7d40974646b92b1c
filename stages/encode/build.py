"""Stage one: from a data set to finished columns, making only what is missing.

Any number of processes may build the same cache at once, on one machine or on several that
share its file system: each makes the shards that no other has claimed. Where files cannot be
locked, as in object stores, there is one at a time.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from cache import ledger
from cache.errors import IncompleteCacheError, RepaCacheError
from cache.layout import FLIPPED, Column
from cache.locking.locks import build_locks
from cache.metadata import check_fields, has_column, read_column, root_attributes
from cache.reader import invalid_rows
from cache.rows import RowTable, read_rows
from cache.stores.places import Place
from cache.verify import Fault
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.cache_setup import (
    Wanted,
    known_rows,
    lay_out,
    mend_columns,
    strike,
    tidy,
    wanted_rows,
)
from stages.encode.building.column_making import ColumnMaking, Made
from stages.encode.building.columns import load_makers
from stages.encode.building.components import (
    check_components,
    components_columns,
    open_components,
)
from stages.encode.building.latent_statistics import keep_statistics, say_how_far_from_one
from stages.encode.building.recipes import declared_recipes
from stages.encode.building.shard_making import Counts
from stages.encode.building.text_making import lay_out_texts, make_texts
from stages.encode.building.texts import load_text_makers
from stages.encode.images.crop_sources import found, open_crops, open_source
from stages.encode.images.index import index, listed_as
from stages.progress import say
from stages.setting_types import nearest


class UnknownColumnError(RepaCacheError):
    """The configuration has no column of this name."""


@dataclass(frozen=True)
class BuildSummary:
    """What a cache holds after a build, and what this build did.

    added: rows that are new to the cache; missing: shards that are left to be made; counts,
    seconds: of the making of shards; damaged: faults that need another configuration to be
    mended; invalid: reasons by the keys of images that could not be decoded; texts: what was done
    for captions.
    """

    path: Place
    rows: int
    columns: tuple[Column, ...]
    added: int
    missing: int
    counts: Counts
    seconds: float
    damaged: tuple[Fault, ...]
    invalid: Mapping[str, str]
    texts: Made


def build(
    settings: EncodeSettings, device: torch.device, options: BuildOptions | None = None
) -> BuildSummary:
    """Encode every image that a column lacks.

    Raises RowsChangedError if images that are cached changed since, StaleCacheError if a column
    was built by another recipe, CacheBusyError if another build is in the way; none of them
    touches the cache.
    """
    options = options or BuildOptions()
    path, threads = settings.cache.path, settings.reading_threads()
    if path.exists():
        root_attributes(path)
    source, locks = open_source(settings), build_locks(path, say, break_lock=options.break_lock)
    # Before images are read, which may take hours.
    makers = load_makers(settings, device)
    text_makers = load_text_makers(settings, device, source)
    check_components(settings, makers, device)
    with ThreadPoolExecutor(threads) as pool, ExitStack() as stack:
        known = known_rows(path)
        if source is None:
            current, block = read_rows(path, known), 1
        else:
            say(found(source, settings.dataset))
            skip, block = settings.dataset.on_error == "skip", source.block_rows
            cached = known.rows if known else None
            if cached is not None and source.are_keys_places:
                cached = listed_as(cached, source)
            current = index(source, cached, pool, skip=skip)
            del cached
        with locks.preparing(say):
            tidy(path)
            may_recognise = source is not None and source.are_keys_places
            wanted = wanted_rows(
                settings.cache, options, current, known, locks, block, may_recognise=may_recognise
            )
            rows = wanted.rows
            # They take as much memory again as the rows.
            del current, known
            _check_declared(settings, options, len(rows))
            crops = open_crops(settings, source, rows, pool, device)
            locks.confirm()
            columns, damaged = lay_out(settings.cache, options, makers, wanted, crops, threads)
            texts = lay_out_texts(settings, options, text_makers, source, rows, pool, device)
            stack.enter_context(locks.at_work())
        making = ColumnMaking(settings, options, device, locks)
        # Before images, which take longer: what is done with needs no memory then.
        told = make_texts(making, texts, columns[0].shards, source)
        made = making.make(columns, makers, crops, source)
        if not settings.latents.is_pixels:
            if settings.latents.scaling == "measured":
                with locks.preparing(say):
                    keep_statistics(columns[0], rows)
            say_how_far_from_one(columns[0], settings.latents.scaling, rows)
        derived, more = _make_components(making, rows, pool, damaged)
    waiting = len(components_columns(settings)) - len(derived)
    columns = (*columns, *derived)
    missing = [ledger.missing(column, rows) for column in columns]
    damaged += texts.faults
    invalid = set().union(*map(invalid_rows, columns, missing))
    return BuildSummary(
        path=path,
        rows=len(rows),
        columns=(*columns, *texts.columns),
        added=wanted.added,
        missing=sum(map(len, missing)) + waiting * columns[0].shards + texts.missing,
        counts=(made + more).counts,
        seconds=(made + more).seconds,
        texts=told,
        damaged=tuple(damaged),
        invalid={
            key: crops.failures.get(key, "found by an earlier build")
            for key in map(str, rows.key[sorted(invalid)])
        },
    )


def _check_declared(settings: EncodeSettings, options: BuildOptions, rows: int) -> None:
    """Raise StaleCacheError if components were made by other settings than the configuration's."""
    path, declared = settings.cache.path, declared_recipes(settings)
    for name in components_columns(settings):
        is_kept = name not in options.rebuild and not options.repair
        if is_kept and has_column(path, name):
            check_fields(read_column(path, name, rows), declared[name])


def find_columns(settings: EncodeSettings, names: Sequence[str]) -> frozenset[str]:
    """The columns meant by names of encoders, of the VAE, or of columns.

    An encoder's name also stands for its column of mirrored images, and for what is derived from
    its tokens. Raises UnknownColumnError for a name that the configuration does not have.
    """
    known: dict[str, set[str]] = {}
    recipes = declared_recipes(settings)
    for column in recipes:
        plain = column.removesuffix(FLIPPED)
        for alias in (column, plain, Path(plain).name):
            known.setdefault(alias, set()).add(column)
    for name in names:
        if name not in known:
            raise UnknownColumnError(f"unknown name {name!r}; {nearest(name, known)}")
    found = frozenset().union(*(known[name] for name in names))
    return found | {name for name, recipe in recipes.items() if recipe.get("source") in found}


def _make_components(
    making: ColumnMaking, rows: RowTable, pool: Executor, faults: list[Fault]
) -> tuple[list[Column], Made]:
    """Make the columns that are made of tokens, as far as those are whole.

    faults: all that were found, of which those that can be mended here are taken out.
    """
    settings, columns, made = making.settings, [], Made()
    as_they_are = Wanted(rows, added=0, is_stored=True)
    for name in components_columns(settings):
        try:
            maker, reader = open_components(settings, name, rows, pool, making.device)
        except IncompleteCacheError as error:
            say(f"{name} will be made of tokens that are not all there yet: {error}")
            continue
        with making.locks.preparing(say):
            if making.options.repair:
                mend_columns(settings.cache.path, [maker], reader)
            (column,), _ = lay_out(settings.cache, BuildOptions(), [maker], as_they_are, reader, 1)
            faults[:] = strike([column], faults)
        made += making.make([column], [maker], reader, derived=name)
        columns.append(column)
    return columns, made
