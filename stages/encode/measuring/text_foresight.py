"""What a build will make of captions, from the configurations of text encoders alone.

M texts, X tokens, E their features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean

import numpy as np

from cache import ledger
from cache.captions import CAPTIONS, has_captions
from cache.errors import DamagedCacheError
from cache.layout import VALID, ArraySpec, Column
from cache.metadata import has_column, read_column
from cache.rows import read_rows
from cache.storage import STORAGES
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.recipes import declared_recipes, text_column
from stages.encode.images.sources import Source
from stages.encode.network_settings import TextSettings
from stages.encode.networks.text_models import kind_of, known_config, longest

# Where no caption is there to count: as in MS-COCO, by CLIP's tokeniser.
TYPICAL_CAPTIONS, TYPICAL_TOKENS = 5.0, 13.0
# Tokens and features that U-ViT's scripts leave of a caption.
IMPORTED = (77, 768)
# Images whose captions are counted, and tokens that a word becomes.
COUNTED_IMAGES, TOKENS_OF_WORD = 1000, 1.3


@dataclass(frozen=True)
class TextShape:
    """What a text encoder gives for a text, and the operations that it takes."""

    tokens: int
    features: int
    flops: float
    is_masked: bool


@dataclass(frozen=True)
class Texts:
    """The texts that a cache will have. count: M; tokens: that are of a text, the mean."""

    count: int
    tokens: float


def text_shape(name: str, settings: TextSettings) -> TextShape:
    """What the encoder of a section is like. Raises EncoderError if that cannot be known."""
    if settings.imported:
        return TextShape(*IMPORTED, 0.0, is_masked=False)
    config = known_config(settings.location(name))
    kind = kind_of(config)
    own = config.get(kind.reads, config) if kind.reads else config
    tokens = settings.max_tokens or longest(config, kind)
    width = own.get("hidden_size") or own["d_model"]
    layers = own.get("num_hidden_layers") or own["num_layers"]
    hidden = own.get("intermediate_size") or own["d_ff"]
    is_gated = "gated" in str(own.get("feed_forward_proj", "")) or "num_key_value_heads" in own
    matrices = 4 * width**2 + (3 if is_gated else 2) * width * hidden
    flops = layers * tokens * (2 * matrices + 4 * tokens * width)
    padding = settings.padding or kind.padding
    return TextShape(tokens, width, float(flops), padding == "masked")


def count_texts(settings: EncodeSettings, source: Source | None, images: int) -> Texts:
    """The texts of a cache: those that are there, else by the captions of some images."""
    path = settings.cache.path
    if has_captions(path):
        own = read_rows(path / CAPTIONS)
        return Texts(len(own), _tokens_of(own.key[:COUNTED_IMAGES].tolist()))
    if source is None or source.captions is None:
        return Texts(round(images * TYPICAL_CAPTIONS), TYPICAL_TOKENS)
    read = source.captions
    some = [read(place) for place in islice(_spread(images), COUNTED_IMAGES)]
    said = [text for captions in some for text in captions]
    distinct = len(set(said)) / len(some)
    return Texts(round(images * distinct), _tokens_of(said) if said else TYPICAL_TOKENS)


def foreseen_text_columns(
    settings: EncodeSettings, texts: Texts
) -> Iterator[tuple[Column, TextShape, int, int]]:
    """Each text encoder's column as a build will leave it, with rows and shards that it lacks."""
    path, recipes = settings.cache.path, declared_recipes(settings)
    for name, own in settings.texts.items():
        shape, storage = text_shape(name, own), STORAGES[own.storage]
        sample = np.zeros((1, shape.tokens, shape.features), np.float32)
        constants = storage.measure(sample) if storage.constants else {}
        stored = storage.encode("tokens", sample, constants)
        arrays = (
            *(
                ArraySpec(
                    key,
                    str(values.dtype),
                    values.shape[1:],
                    is_compressed=shape.is_masked and key == "tokens",
                )
                for key, values in stored.items()
            ),
            ArraySpec("length", "int16", ()),
            VALID,
        )
        column = Column(
            name=text_column(name),
            folder=path / text_column(name),
            arrays=arrays,
            recipe=recipes[text_column(name)],
            rows=texts.count,
            rows_per_shard=settings.cache.rows_per_shard,
            constants={"empty_tokens": sample[0]},
        )
        missing = _missing(settings, column)
        rows = sum(len(column.shard_rows(shard)) for shard in missing)
        yield column, shape, rows, len(missing)


def _missing(settings: EncodeSettings, column: Column) -> list[int]:
    path = settings.cache.path / CAPTIONS
    name = column.name.removeprefix(f"{CAPTIONS}/")
    if not has_column(path, name):
        return list(range(column.shards))
    try:
        rows = read_rows(path)
        return ledger.missing(read_column(path, name, len(rows)), rows)
    except DamagedCacheError:
        return list(range(column.shards))


def _tokens_of(texts: list[str]) -> float:
    """How many tokens texts have, about, those at the ends included."""
    return fmean(2 + TOKENS_OF_WORD * len(text.split()) for text in texts)


def _spread(images: int) -> Iterator[int]:
    """Images from all over a data set."""
    return iter(range(0, images, max(1, images // COUNTED_IMAGES)))
