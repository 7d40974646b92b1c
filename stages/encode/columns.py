"""The columns a configuration asks for: their recipes, and the networks that make them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.layout import Constants
from cache.recipe import Recipe, RecipeValue
from cache.storage import STORAGES, Storage
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

    array: the name of its main array; recipe: without the constants; network: a batch of crops,
    uint8 [B, 3, S, S], to the tensor that is stored, float32 [B, ...].
    """

    column: str
    array: str
    recipe: Recipe
    network: Callable[[Tensor], Tensor]

    @property
    def storage(self) -> Storage:
        """How the tensor is stored."""
        return STORAGES[str(self.recipe["storage"])]

    def measure(self, values: Tensor) -> Constants:
        """The constants of a new column, from the tensors of a sample of rows."""
        return _on_cpu(self.storage.measure(values))

    def encode(self, images: Tensor, constants: Constants) -> Arrays:
        """All arrays of the column for a batch of crops."""
        values = self.network(images)
        there = {n: torch.from_numpy(c).to(values.device) for n, c in constants.items()}
        return _on_cpu(self.storage.encode(self.array, values, there))


def _on_cpu(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: np.asarray(tensor.cpu()) for name, tensor in tensors.items()}


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
    recipe = declared_recipes(settings)[name] | autoencoder.recipe()
    return Maker(name, "moments", recipe, autoencoder.encode)


def load_features_maker(settings: EncodeSettings, encoder: str, device: torch.device) -> Maker:
    """Load an encoder of the configuration; its column holds `tokens` [N, T, D]."""
    frozen = FrozenEncoder(
        ENCODERS[encoder],
        settings.input_size(encoder),
        settings.encoders[encoder].weights,
        device,
    )
    name = f"features/{encoder}"
    recipe = declared_recipes(settings)[name] | {"weights_sha256": frozen.weights_sha256}
    return Maker(name, "tokens", recipe, frozen.tokens)
