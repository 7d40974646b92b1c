"""The captions that images are drawn of: prompts, encoded now, or those of the cache.

B images, P prompts, X tokens, E their features.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cache.captions import CAPTIONS
from cache.layout import FEATURES
from cache.metadata import read_column
from cache.recipe import Recipe, recipe_differences
from cache.rows import count_rows, read_rows
from cache.storage import STORAGES
from cache.stores.places import Place
from stages.encode.network_settings import TextSettings
from stages.encode.networks.text_encoder import TextEncoder
from stages.model.conditions import Condition, Context, mapped
from stages.sample.sample_settings import SampleSettings
from stages.sample.sampled_weights import SampledWeights, SampleOptions
from stages.sample.solvers.solver import SampleError
from stages.sample.told import Told
from stages.train.cached_captions import CachedCaptions
from stages.train.randomness import Stream, seed_for


@dataclass(frozen=True)
class TextSource:
    """Where captions come from. encoders: of the configuration; cache: that has captions."""

    encoders: Mapping[str, TextSettings]
    cache: Place


@dataclass(frozen=True)
class Prompts:
    """What is drawn. text: the caption of an image, by its number; told: what a model is told.

    identity: what a manifest tells of them.
    """

    text: Callable[[int], str]
    told: Told
    identity: dict[str, Any]

    @property
    def title(self) -> str:
        """A short name of them."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:8]


def prompts_for(
    settings: SampleSettings,
    options: SampleOptions,
    weights: SampledWeights,
    source: TextSource | None,
    text: str | None,
    device: torch.device,
) -> Prompts | None:
    """What images are drawn of, if a model reads captions. Raises SampleError if none can be.

    text: the text encoder of the configuration.
    """
    texts = options.prompts or settings.prompts
    if not weights.config.context_features:
        if options.prompts:
            raise SampleError(f"{weights.model} reads no captions, but prompts are given.")
        return None
    if source is None or (weights.text is None and text is None):
        raise SampleError(
            f"{weights.path} does not tell by which text encoder it reads captions",
            remedy="Name a section of [texts] that the cache has: train.text.",
        )
    # A published file has that of the configuration.
    name, recipe = weights.text or (text, column_recipe(source.cache, str(text)))
    assert name is not None
    if texts:
        return encoded(texts, name, recipe, source, device)
    return cached(name, recipe, source, settings.seed)


def encoded(
    texts: Sequence[str], name: str, recipe: Recipe, source: TextSource, device: torch.device
) -> Prompts:
    """Prompts, as the text encoder of a model sees them: image i is of prompt i modulo P.

    name, recipe: of the encoder that the model was trained with. Raises SampleError unless the
    configuration's encoder of that name is it.
    """
    if name not in source.encoders:
        raise SampleError(
            f"the model reads captions by {name!r}, of which the configuration has no section",
            remedy=f"Add [texts.{name}], as the run had it.",
        )
    encoder = TextEncoder(name, source.encoders[name], device)
    own = encoder.recipe()
    if recipe.get("imported"):
        # Tokens that were brought along say no more of their encoder.
        own = {field: own[field] for field in own if field in recipe}
    known = {field: recipe[field] for field in own if field in recipe}
    if changed := recipe_differences(known, own):
        raise SampleError(
            f"[texts.{name}] is not the encoder that the model was trained with "
            f"({'; '.join(changed)})",
            remedy="Restore its settings and weights.",
        )
    found = encoder.features(encoder.tokenised([*texts, ""]))
    tokens = found["tokens"].cpu()
    if recipe["storage"] == "float16":
        # As the cache keeps them.
        tokens = STORAGES["float16"].decode("tokens", {"tokens": tokens.half()}, {})
    is_masked = encoder.padding == "masked"
    seen = torch.arange(encoder.max_tokens) < found["length"].cpu()[:, None]
    every = Context(tokens, seen if is_masked else None)

    def told(indices: Sequence[int]) -> tuple[Condition, Condition]:
        chosen = torch.tensor([index % len(texts) for index in indices])
        nothing = torch.full_like(chosen, len(texts))
        return mapped(every, lambda one: one[chosen]), mapped(every, lambda one: one[nothing])

    return Prompts(
        lambda index: texts[index % len(texts)], told, {"text": name, "prompts": list(texts)}
    )


def cached(name: str, recipe: Recipe, source: TextSource, seed: int) -> Prompts:
    """The captions of the cache: image i is of one of those of its row i, drawn by the seed.

    name, recipe: of the encoder that the model was trained with. Raises SampleError if the cache's
    is another.
    """
    captions = CachedCaptions(source.cache, name, read_rows(source.cache), verify=True)
    if changed := recipe_differences(recipe, captions.column.recipe):
        raise SampleError(
            f"the captions of {source.cache} are not as the model was trained with "
            f"({'; '.join(changed)})",
            remedy="Give prompts with --prompt or --prompts, or restore that cache.",
        )
    rows = np.flatnonzero(captions.has_any)
    cpu = torch.device("cpu")
    empty = captions.empty(cpu)

    def texts(indices: Sequence[int]) -> Any:
        drawn = [seed_for(seed, Stream.CAPTIONS, index) for index in indices]
        images = rows[np.asarray(indices) % len(rows)]
        return captions.rows(images, np.array(drawn, np.uint64))

    def told(indices: Sequence[int]) -> tuple[Condition, Condition]:
        count = len(indices)
        nothing = mapped(empty, lambda one: one.expand(count, *one.shape[1:]))
        return captions.read(texts(indices), cpu), nothing

    return Prompts(
        lambda index: captions.text(int(texts([index])[0])),
        told,
        {"text": name, "captions": captions.fingerprint},
    )


def column_recipe(cache: Place, name: str) -> Recipe:
    """The recipe of a text encoder's column in a cache."""
    path = cache / CAPTIONS
    return read_column(path, FEATURES + name, count_rows(path)).recipe
