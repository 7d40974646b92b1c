"""Having the columns of text encoders made, of the captions of a cache's images."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from cache import ledger
from cache.layout import Column
from cache.rows import RowTable
from cache.verify import Fault
from stages.encode.build_options import BuildOptions
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.cache_setup import Wanted, lay_out
from stages.encode.building.captions import lay_out_captions, texts_path
from stages.encode.building.column_making import ColumnMaking, Made
from stages.encode.building.texts import TextMaker, TextReader
from stages.encode.images.sources import Source

if TYPE_CHECKING:
    from stages.encode.building.columns import Maker

# What a worker is told to make instead of columns of images.
TEXTS = "captions"


@dataclass(frozen=True)
class TextWork:
    """Columns that are laid out, and what makes them. faults: of other columns of texts."""

    columns: tuple[Column, ...] = ()
    makers: Sequence[TextMaker] = ()
    reader: TextReader | None = None
    faults: Sequence[Fault] = ()

    @property
    def missing(self) -> int:
        """How many shards are left to be made."""
        if self.reader is None:
            return 0
        return sum(len(ledger.missing(column, self.reader.rows)) for column in self.columns)


def lay_out_texts(
    settings: EncodeSettings,
    options: BuildOptions,
    makers: Sequence[TextMaker],
    source: Source | None,
    rows: RowTable,
    pool: Executor,
    device: torch.device,
) -> TextWork:
    """Write what lacks of captions and of columns for them. Nobody else may be preparing.

    source: the images' data set, or None if it is gone; rows: of the images.
    """
    if not makers:
        return TextWork()
    texts = lay_out_captions(settings.cache, options, source, rows, pool)
    cache = settings.cache.model_copy(update={"path": texts_path(settings.cache.path)})
    reader = TextReader(texts, settings.build.images_at_once(device))
    wanted = Wanted(texts, added=0, is_stored=True)
    # Columns that are made anew have been removed with those of images.
    as_they_are = replace(options, rebuild=frozenset())
    threads = settings.build.decoding_threads()
    columns, faults = lay_out(cache, as_they_are, makers, wanted, reader, threads)
    return TextWork(columns, makers, reader, faults)


def make_texts(
    making: ColumnMaking, work: TextWork, image_shards: int, source: Source | None
) -> Made:
    """Make what lacks. image_shards: that the cache has of images, of which a build may make some.

    Of texts it makes as large a part.
    """
    if work.reader is None:
        return Made()
    own = replace(
        making,
        locks=making.locks.part(TEXTS),
        options=replace(
            making.options,
            shards=_scaled(making.options.shards, image_shards, work.columns[0].shards),
        ),
    )
    makers: list[Maker] = list(work.makers)
    return own.make(work.columns, makers, work.reader, source, derived=TEXTS, unit="texts")


def _scaled(part: slice, whole: int, own: int) -> slice:
    """The shards, of so many, that are the same part of them as some of a whole."""
    start, stop, _ = part.indices(whole)
    return slice(math.ceil(start * own / whole), math.ceil(stop * own / whole))
