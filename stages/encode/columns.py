"""The columns a configuration asks for: their recipes, and the networks that make them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.recipe import Recipe, RecipeValue
from stages.encode.autoencoder import Autoencoder
from stages.encode.encoders import ENCODERS
from stages.encode.features import FrozenEncoder
from stages.encode.settings import EncodeSettings

# Raised whenever the same settings give other bytes than before.
RECIPE_VERSION = 1

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Maker:
    """Makes the rows of one column.

    encode: a batch of crops, uint8 [B, 3, S, S], to the column's arrays, each [B, ...].
    """

    column: str
    recipe: Recipe
    encode: Callable[[Tensor], Arrays]


def declared_recipes(settings: EncodeSettings) -> dict[str, dict[str, RecipeValue]]:
    """What the configuration alone says of every column's recipe, without loading a network."""
    image: dict[str, RecipeValue] = {
        "recipe_version": RECIPE_VERSION,
        "resolution": settings.dataset.resolution,
        "crop": "ADM centre crop",
        "compute": "float32",
    }
    recipes = {settings.latents.column: image | {"storage": "float16"}}
    for name, encoder in settings.encoders.items():
        spec = ENCODERS[name].recipe(settings.input_size(name))
        recipes[f"features/{name}"] = image | spec | {"storage": encoder.storage}
    return recipes


def load_makers(settings: EncodeSettings, device: torch.device) -> list[Maker]:
    """Load every network and say which column it makes."""
    encoders = (load_features_maker(settings, encoder, device) for encoder in settings.encoders)
    return [load_latents_maker(settings, device), *encoders]


def load_latents_maker(settings: EncodeSettings, device: torch.device) -> Maker:
    """Load the autoencoder; its column holds `moments` [N, 2C, h, w]."""
    autoencoder = Autoencoder(settings.latents.location, device)
    name = settings.latents.column
    return Maker(
        name,
        declared_recipes(settings)[name] | autoencoder.recipe(),
        lambda images: {"moments": _float16(autoencoder.encode(images))},
    )


def load_features_maker(settings: EncodeSettings, encoder: str, device: torch.device) -> Maker:
    """Load an encoder of the configuration; its column holds `tokens` [N, T, D]."""
    frozen = FrozenEncoder(
        ENCODERS[encoder],
        settings.input_size(encoder),
        settings.encoders[encoder].weights,
        device,
    )
    name = f"features/{encoder}"
    return Maker(
        name,
        declared_recipes(settings)[name] | {"weights_sha256": frozen.weights_sha256},
        lambda images: {"tokens": _float16(frozen.tokens(images))},
    )


def _float16(values: Tensor) -> npt.NDArray[np.float16]:
    array: npt.NDArray[np.float16] = values.to(torch.float16).cpu().numpy()
    return array
