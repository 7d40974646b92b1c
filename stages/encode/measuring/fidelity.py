"""How true stored tensors are to what the networks give: encode again, and compare.

R rows, T tokens, D features.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cache.captions import CAPTIONS
from cache.layout import Constants
from cache.metadata import check_recipe
from cache.order import evenly
from cache.reader import Cache
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.captions import texts_path
from stages.encode.building.columns import Maker, load_makers
from stages.encode.building.components import components_columns, open_components
from stages.encode.building.texts import TextReader, load_text_makers
from stages.encode.building.token_batches import Batch, Reader
from stages.encode.images.crop_batches import CropReader
from stages.encode.images.crop_sources import open_crops, open_source
from stages.progress import progress


@dataclass(frozen=True)
class Fidelity:
    """How stored rows of an array compare with fresh ones.

    mean, percentile1, minimum: of the cosine between stored and fresh, over tokens, or over
    images for latents; error: root mean square difference relative to the values; loss_change:
    of the alignment loss, for predictions half way between the tokens and noise; None for
    latents.
    """

    array: str
    storage: str
    rows: int
    mean: float
    percentile1: float
    minimum: float
    error: float
    loss_change: float | None


def measure_fidelity(settings: EncodeSettings, count: int, device: torch.device) -> list[Fidelity]:
    """Encode `count` rows from all over the cache again, and compare every column.

    Raises StaleCacheError if a column was built by another recipe.
    """
    cache, measured = Cache(settings.cache.path), []
    with ThreadPoolExecutor(settings.reading_threads()) as pool:
        source = open_source(settings)
        crops = open_crops(settings, source, cache.rows, pool, device)
        if source is not None:
            crops = replace(crops, stored=None)
        for maker, inputs in _with_readers(settings, crops, device):
            measured.append(_measured(cache, maker, inputs, count))
    if settings.texts:
        texts = Cache(texts_path(settings.cache.path))
        told = TextReader(texts.rows, settings.build.images_at_once(device))
        for text_maker in load_text_makers(settings, device, source):
            found = _measured(texts, text_maker, told, count)
            measured.append(replace(found, array=f"{CAPTIONS}/{found.array}", loss_change=None))
    return measured


def _measured(cache: Cache, maker: Maker, inputs: Reader, count: int) -> Fidelity:
    """How true a column of a cache is, by so many of its rows."""
    reader = cache.column(maker.column)
    check_recipe(reader.column, maker.recipe)
    rows = evenly(np.flatnonzero(reader.valid), count)
    batches, constants = inputs.batches(rows.tolist()), reader.column.constants
    fresh = encoded_again(maker, batches, len(rows), constants)
    stored = torch.from_numpy(reader.values(maker.array, rows))
    return _compare(maker, stored, fresh)


def _with_readers(
    settings: EncodeSettings, crops: CropReader, device: torch.device
) -> Iterator[tuple[Maker, Reader]]:
    """What makes each column, and the reader of what it is made of."""
    for maker in load_makers(settings, device):
        yield maker, crops
    for name in components_columns(settings):
        yield open_components(settings, name, crops.rows, crops.pool, device)


def encoded_again(
    maker: Maker, batches: Iterable[Batch], count: int, constants: Constants | None = None
) -> Tensor:
    """What is stored of batches of `count` images in all, float32 [R, ...] on the CPU.

    constants: of the column.
    """
    values = []
    with progress(f"{maker.column} again", count, "images") as advance:
        for batch in batches:
            values.append(maker.values(batch, constants or {})[maker.array].cpu())
            advance(len(batch), "")
    return torch.cat(values)


def _compare(maker: Maker, stored: Tensor, fresh: Tensor) -> Fidelity:
    is_tokens = maker.array == "tokens"
    stored, fresh = stored.float(), fresh.float()
    pairs = [values if is_tokens else values.flatten(1) for values in (stored, fresh)]
    if is_tokens:
        # Padding is zeros, of which there is no cosine.
        is_there = fresh.any(dim=-1)
        pairs = [values[is_there] for values in pairs]
    cosine = cosine_similarity(pairs[0].double(), pairs[1].double(), dim=-1)
    return Fidelity(
        array=f"{maker.column}/{maker.array}",
        storage=str(maker.recipe["storage"]),
        rows=len(fresh),
        mean=cosine.mean().item(),
        percentile1=float(np.quantile(cosine.numpy(), 0.01)),
        minimum=cosine.min().item(),
        error=((stored - fresh).norm() / fresh.norm()).item(),
        loss_change=_loss_change(stored, fresh) if is_tokens else None,
    )


def _loss_change(stored: Tensor, fresh: Tensor) -> float:
    """How much the alignment loss is off when stored tokens replace fresh ones, [R, T, D].

    The prediction is as far from the tokens as from noise, which is where training spends its
    time: a cosine of about 0.7.
    """
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(0))
    predicted = normalize(fresh, dim=-1) + normalize(noise, dim=-1)
    losses = [-cosine_similarity(predicted, tokens, dim=-1).mean() for tokens in (stored, fresh)]
    return (losses[0] - losses[1]).item()
