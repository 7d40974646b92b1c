"""What a build will make, from the shapes of its networks alone: no weights, no image.

Networks are made on torch's meta device, whose tensors have shapes and no values, and run there
as they would in earnest: columns and operations are those of the code that encodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cache import ledger
from cache.captions import CAPTIONS
from cache.layout import Column
from cache.metadata import check_fields, has_column, read_column
from cache.rows import CHUNK_ROWS, RowTable, read_rows
from cache.sizes import sample_table
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.cache_setup import check_layout
from stages.encode.building.columns import Maker, column_of, imported_shape, load_makers
from stages.encode.building.components import (
    check_components,
    components_columns,
    components_maker,
)
from stages.encode.building.recipes import declared_recipes
from stages.encode.building.token_batches import Batch, TokenBatch
from stages.encode.images.crop_batches import Crops
from stages.encode.images.crop_sources import open_source
from stages.encode.images.sources import Source, SourceError
from stages.encode.measuring.text_foresight import count_texts, foreseen_text_columns

META = torch.device("meta")
# Where there is no data set to count: class folders and file names of ImageNet's kind.
TYPICAL_CLASSES = 1000


@dataclass(frozen=True)
class Images:
    """The images that a cache will have.

    count: N; counted_in: what said so; table: the rows of N images, or a sample of them; source:
    the data set, where it was opened; cached: the rows that the cache has already, if it is there.
    """

    count: int
    counted_in: str
    table: RowTable
    source: Source | None = None
    cached: RowTable | None = None


@dataclass(frozen=True)
class ForeseenColumn:
    """A column as a build will leave it.

    flops: of its network, for one image, or one text; missing_rows, missing_shards: that have to be
    made; stored: what compression leaves of arrays that are compressed, if that is known.
    """

    column: Column
    flops: float
    missing_rows: int
    missing_shards: int
    stored: float | None = None

    @property
    def is_of_texts(self) -> bool:
        """Whether its rows are texts."""
        return self.column.name.startswith(CAPTIONS)

    @property
    def unit(self) -> str:
        """What its rows are."""
        return "texts" if self.is_of_texts else "images"

    @property
    def is_derived(self) -> bool:
        """Whether it is made of another column, or of texts: for which no image is read."""
        return "source" in self.column.recipe or self.is_of_texts


def count_images(settings: EncodeSettings, count: int | None) -> Images:
    """The images of a cache: `count`, else its rows, else those that the data set lists.

    Raises SourceError if none of them is to be had, or if a cache has more rows than `count`.
    """
    path = settings.cache.path
    cached = None
    if path.exists():
        check_layout(settings.cache)
        cached = read_rows(path)
    if count is not None:
        if cached is not None and count < len(cached):
            raise SourceError(f"--images {count}: {path} has {len(cached):,} rows already.")
        return Images(count, "--images", cached or _typical_table(count), None, cached)
    if cached is not None:
        return Images(len(cached), f"the rows of {path.name}", cached, None, cached)
    try:
        source = open_source(settings)
    except SourceError as error:
        raise SourceError(f"{error} Or say how many images there will be: --images N.") from error
    assert source is not None, "only a cache can stand in for a data set"
    table = sample_table(source.keys, source.labels, source.classes)
    if not source.stamp(0):
        table = replace(table, stamp=np.zeros_like(table.stamp))
    return Images(len(source.keys), f"the source {settings.dataset.source}", table, source)


def _typical_table(count: int) -> RowTable:
    labels = np.arange(min(count, CHUNK_ROWS), dtype=np.int32) % TYPICAL_CLASSES
    keys = [f"n{label:08d}/n{label:08d}_{place}.JPEG" for place, label in enumerate(labels)]
    return sample_table(keys, labels, [f"n{label:08d}" for label in range(TYPICAL_CLASSES)])


def foresee(settings: EncodeSettings, images: Images) -> list[ForeseenColumn]:
    """The columns of a build, in their order.

    Raises StaleCacheError if the cache has one by another recipe, as far as the configuration
    tells: weights are compared by a build, which loads them.
    """
    sample = _sample(settings)
    # Shapes and operations are the same in half precision, which the meta device lacks.
    makers = load_makers(settings.in_precision("float32"), META, untrained=True)
    check_components(settings, makers, META)
    sketches = {maker.column: _sketch(settings, maker, sample, images.count) for maker in makers}
    for name in components_columns(settings):
        maker = components_maker(settings, name, META)
        features = sketches[str(maker.recipe["source"])][0].array(maker.array).row_shape
        tokens = TokenBatch(torch.empty(1, *features, device=META), np.ones(1, np.bool_))
        sketches[name] = _sketch(settings, maker, tokens, images.count)
    made = [_foreseen(settings, *sketch, images.cached) for sketch in sketches.values()]
    if settings.texts:
        texts = count_texts(settings, images.source, images.count)
        for column, shape, rows, shards in foreseen_text_columns(settings, texts):
            stored = min(1.0, texts.tokens / shape.tokens) if shape.is_masked else 1.0
            made.append(ForeseenColumn(column, shape.flops, rows, shards, stored))
    return made


def _foreseen(
    settings: EncodeSettings, column: Column, flops: float, cached: RowTable | None
) -> ForeseenColumn:
    made = _finished(settings, column, cached)
    rows = column.rows - sum(len(column.shard_rows(shard)) for shard in made)
    return ForeseenColumn(column, flops, rows, column.shards - len(made))


def _sample(settings: EncodeSettings) -> Crops:
    """One image without pixels, and the latents it brings along."""
    side = settings.dataset.resolution
    crops = Crops.of(torch.empty(1, 3, side, side, dtype=torch.uint8, device=META))
    if not settings.latents.imported:
        return crops
    brought = torch.empty(1, *imported_shape(settings)[1], device=META)
    return replace(crops, latents=brought, mirrored_latents=brought)


def _sketch(
    settings: EncodeSettings, maker: Maker, sample: Batch, rows: int
) -> tuple[Column, float]:
    """The column that a maker fills, and the operations of its network for one image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        values = maker.network(sample)
    # Constants take their space, whatever their values are.
    constants = {
        name: np.ones(tuple(constant.shape), str(constant.dtype).removeprefix("torch."))
        for name, constant in maker.shapes(values[maker.array]).items()
    }
    known = replace(maker, network=lambda _: values)
    cache = settings.cache
    column = column_of(cache.path, known, sample, constants, rows, cache.rows_per_shard)
    return column, float(counter.get_total_flops())


def _finished(settings: EncodeSettings, column: Column, cached: RowTable | None) -> Sequence[int]:
    """The shards of a column that the cache has, and that stay as they are."""
    path = settings.cache.path
    if cached is None or not has_column(path, column.name):
        return ()
    found = read_column(path, column.name, len(cached))
    check_fields(found, declared_recipes(settings)[column.name])
    missing = set(ledger.missing(found, cached))
    return [
        shard
        for shard in range(found.shards)
        if shard not in missing and found.shard_rows(shard) == column.shard_rows(shard)
    ]
