"""A data set's captions as the cache has them: texts, each once, and which images have which."""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass

from cache import files
from cache.captions import (
    CAPTIONS,
    LINKS,
    Links,
    changed_images,
    has_captions,
    links_of,
    read_links,
    text_rows,
    write_links,
)
from cache.errors import DamagedCacheError, RowsChangedError
from cache.rows import RowTable, create_cache, read_rows, read_stored_rows, write_rows
from cache.stores.places import Place
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import CacheSettings
from stages.encode.building.cache_setup import tidy
from stages.encode.images.sources import Source, SourceError
from stages.progress import progress, say

# Images whose captions are read by one task.
READ_IMAGES = 256
NAMED = 5


@dataclass(frozen=True)
class Told:
    """The captions that a cache shall have. added: texts that it does not have yet."""

    links: Links
    texts: RowTable
    added: int


def texts_path(path: Place) -> Place:
    """Where the cache of texts is in the cache at a path."""
    return path / CAPTIONS


def lay_out_captions(
    settings: CacheSettings,
    options: BuildOptions,
    source: Source | None,
    rows: RowTable,
    pool: Executor,
) -> RowTable:
    """Write which of a cache's images have which texts, as the data set says; returns all texts.

    source: None if the images are gone, whose captions are there. Nobody else may be preparing.
    Raises SourceError if there are no captions, RowsChangedError if some are others than before.
    """
    path, own = settings.path, texts_path(settings.path)
    if own.exists():
        tidy(own)
        files.recover(own / LINKS)
    known = _known(own, repair=options.repair)
    if source is None:
        return _as_they_are(path, known)
    captions = _read(source, rows, pool)
    links, texts = links_of(rows.key, captions, known)
    if not len(links.text):
        raise SourceError(
            "texts: no image of the data set has a caption",
            where=settings.path,
            remedy="See dataset.captions, or leave out [texts].",
        )
    if known is not None and has_captions(path):
        with suppress(DamagedCacheError):
            before = read_links(path, texts)
            _check(path, before, links, texts, may_update=options.update)
    if lacking := len(rows) - len(links.key):
        say(f"{lacking:,} of {len(rows):,} images have no caption")
    if not own.exists():
        create_cache(own, texts, settings.rows_per_shard, settings.seed)
    elif known is None or len(texts) > len(known):
        write_rows(own, texts)
    write_links(path, links, texts)
    return texts


def _known(own: Place, *, repair: bool) -> RowTable | None:
    """The texts that are there. repair: whether to take them as they are if they were edited."""
    if not own.exists():
        return None
    try:
        return read_rows(own)
    except DamagedCacheError:
        if not repair:
            raise
    with suppress(DamagedCacheError):
        # The ledgers tell which shards are of other texts.
        return text_rows(list(dict.fromkeys(read_stored_rows(own).rows.key.tolist())))
    return None


def _as_they_are(path: Place, known: RowTable | None) -> RowTable:
    if known is None:
        raise SourceError(
            "texts: captions are read from the data set, which is not there",
            where=path,
            remedy="Restore the data set, or leave out [texts].",
        )
    read_links(path, known)
    return known


def _read(source: Source, rows: RowTable, pool: Executor) -> list[Sequence[str]]:
    """The captions of each row's image."""
    read = source.captions
    if read is None:
        return [() for _ in range(len(rows))]
    places = rows.source_index.tolist()

    def some(start: int) -> list[Sequence[str]]:
        return [_kept(read(place)) for place in places[start : start + READ_IMAGES]]

    found: list[Sequence[str]] = []
    with progress("captions", len(places), "images") as advance:
        for part in pool.map(some, range(0, len(places), READ_IMAGES)):
            found += part
            advance(len(part), "")
    return found


def _kept(captions: Sequence[str]) -> list[str]:
    """Those that say anything, each once."""
    return list(dict.fromkeys(text for text in captions if text.strip()))


def _check(path: Place, before: Links, now: Links, texts: RowTable, *, may_update: bool) -> None:
    """Raise RowsChangedError, naming images, if captions that are cached changed or vanished."""
    changed = changed_images(before, now, texts)
    if not changed:
        return
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    listing = f"{', '.join(changed[:NAMED])}{more}"
    if may_update:
        say(f"captions taken over of {len(changed):,} images: {listing}")
        return
    raise RowsChangedError(
        f"{len(changed)} images have other captions than before: {listing}",
        where=path,
        remedy=(
            "Restore them, take them over (`repa-cache build --update`), which encodes only texts "
            "that are new, or build another cache (cache.path)."
        ),
    )
