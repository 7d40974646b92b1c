"""The columns a configuration asks for: their recipes, what makes them, and their form on disk.

B images of a batch, N of a cache, C latent channels, h and w the latent's sides, T tokens, D
features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache import metadata
from cache.layout import FLIPPED, PIXELS, VALID, ArraySpec, Column, Constants
from cache.recipe import Recipe
from cache.storage import STORAGES, Storage
from cache.stores.places import Place
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.provenance import provenance
from stages.encode.building.recipes import (
    MIRRORED,
    declared_recipes,
    features_column,
    pixels_recipe,
)
from stages.encode.building.token_batches import Batch, Reader
from stages.encode.images.crop_batches import Crops
from stages.encode.images.sources import SOURCES
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.autoencoder_configs import autoencoder_scaling, stored_shape
from stages.encode.networks.autoencoders import AutoencoderError
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.frozen_networks import OVERFLOWN, FittingNetwork
from stages.latents import EXACT, MOMENTS, scaling_in

Tensors = Mapping[str, Tensor]
# Constants of a column, wherever they lie.
Given = Mapping[str, Tensor | np.ndarray]


@dataclass(frozen=True)
class Maker:
    """Makes the rows of one column.

    array: the name of its main array; recipe: without the constants; network: a batch, of crops
    unless the column is derived from another one, to tensors by name [B, ...], the main one among
    them.
    """

    column: str
    array: str
    recipe: Recipe
    network: Callable[[Any], Tensors]

    @property
    def storage(self) -> Storage:
        """How the main tensor is stored."""
        return STORAGES[str(self.recipe["storage"])]

    @property
    def is_compressed(self) -> bool:
        """Whether the main array is, on disk."""
        return self.storage.is_compressed

    @property
    def constants(self) -> tuple[str, ...]:
        """The names of the column's constants."""
        return self.storage.constants

    def shapes(self, values: Tensor) -> Tensors:
        """The constants in shape and type, of any values [B, ...] of the main array."""
        return self.storage.measure(values)

    def measure(self, reader: Reader) -> Constants:
        """The constants, from the first rows, which are a random sample."""
        if not self.storage.constants:
            return {}
        sample = reader.batches(range(min(len(reader.rows), self.storage.sample_rows)))
        values = [self.network(one)[self.array][torch.from_numpy(one.valid)] for one in sample]
        return {n: np.asarray(c.cpu()) for n, c in self.storage.measure(torch.cat(values)).items()}

    def values(self, batch: Batch, constants: Given) -> Tensors:  # noqa: ARG002
        """Tensors by name before they are stored. constants: of the column."""
        return self.network(batch)

    @torch.inference_mode()
    def encode(self, batch: Batch, constants: Given) -> dict[str, Tensor]:
        """All arrays of the column for a batch, zeros for images that are not valid.

        With `OVERFLOWN`, bool [B], if networks of half precision note that.
        """
        values = dict(self.values(batch, constants))
        noted = {OVERFLOWN: values.pop(OVERFLOWN)} if OVERFLOWN in values else {}
        main = values.pop(self.array)
        there = {n: torch.as_tensor(c, device=main.device) for n, c in constants.items()}
        arrays = dict(self.storage.encode(self.array, main, there))
        # Those of whole numbers are as they are.
        arrays |= {n: v.half() if v.is_floating_point() else v for n, v in values.items()}
        valid = torch.from_numpy(batch.valid)
        if not batch.valid.all():
            mask = valid.to(main.device)
            arrays = {name: torch.where(_along(mask, a), a, 0) for name, a in arrays.items()}
        return {**arrays, VALID.name: valid.to(torch.uint8), **noted}

    def flipped(self) -> "Maker":
        """Makes the column of the mirrored images."""
        return replace(
            self,
            column=self.column + FLIPPED,
            recipe={**self.recipe, **MIRRORED},
            network=lambda crops: self.network(crops.mirrored()),
        )


def _along(valid: Tensor, values: Tensor) -> Tensor:
    """A flag per image, [B], in the shape of values [B, ...] of the images."""
    return valid.reshape(-1, *(1 for _ in values.shape[1:]))


def load_makers(
    settings: EncodeSettings, device: torch.device, *, untrained: bool = False
) -> list[Maker]:
    """Load every network and say which columns it makes.

    untrained: with random weights, which need no file; on the meta device with shapes alone.
    """
    makers = []
    if not settings.latents.is_pixels:
        makers.append(load_latents_maker(settings, device, untrained=untrained))
    makers += [
        load_features_maker(settings, encoder, device, untrained=untrained)
        for encoder in settings.encoders
    ]
    if settings.dataset.flip:
        makers += [maker.flipped() for maker in makers]
    if settings.stores_pixels:
        recipe = pixels_recipe(settings)
        makers.append(Maker(PIXELS, "pixels", recipe, lambda crops: {"pixels": crops.images}))
    return makers


def load_latents_maker(
    settings: EncodeSettings, device: torch.device, *, untrained: bool = False
) -> Maker:
    """Load the autoencoder; its column holds `moments` [N, 2C, h, w], or `latents` [N, C, h, w].

    Raises ScalingError if it is not known how latents will be scaled.
    """
    latents, recipe = settings.latents, declared_recipes(settings)[settings.latents.column]
    if latents.imported:
        array, shape = imported_shape(settings)
        scaling = autoencoder_scaling(latents)
        return Maker(latents.column, array, recipe | scaling, _imported(array, shape))
    autoencoder = Autoencoder.of(latents, device, untrained=untrained)
    own = autoencoder.recipe()
    if latents.scaling != "measured" and not untrained:
        scaling_in(own, latents.scaling)
    network = FittingNetwork(latents.column, autoencoder.encode)
    return Maker(
        latents.column, autoencoder.array, recipe | own, lambda crops: network(crops.images)
    )


def imported_shape(settings: EncodeSettings) -> tuple[str, tuple[int, ...]]:
    """The array of latents that the data set brings along, and its shape for an image."""
    latents, brought = settings.latents, SOURCES[settings.dataset.source].brings
    assert brought is not None, "the data set brings no latents along"
    array, (channels, *sides) = stored_shape(latents.location, settings.dataset.resolution)
    if brought == EXACT and array == MOMENTS:
        # Drawn from the posterior, once and for all.
        channels //= 2
    return brought, (channels, *sides)


def _imported(array: str, shape: tuple[int, ...]) -> Callable[[Crops], Tensors]:
    """Takes latents from crops. Raises AutoencoderError if they are not of the shape."""

    def network(crops: Crops) -> Tensors:
        assert crops.latents is not None, "crops were read without latents"
        found = crops.latents.shape[1:]
        if found != shape:
            raise AutoencoderError(
                f"latents.imported: the data set's {array} are {list(found)}, expected "
                f"{list(shape)} for this resolution and autoencoder."
            )
        return {array: crops.latents}

    return network


def load_features_maker(
    settings: EncodeSettings, encoder: str, device: torch.device, *, untrained: bool = False
) -> Maker:
    """Load an encoder of the configuration.

    Its column holds `tokens` [N, T, D], and `class_token` [N, D] where the encoder has one.
    """
    own, name = settings.encoders[encoder], features_column(encoder)
    frozen = FrozenEncoder(
        settings.spec(encoder),
        settings.input_size(encoder),
        own.weights,
        device,
        own.precision,
        untrained=untrained,
    )
    network = FittingNetwork(name, frozen.features)
    recipe = declared_recipes(settings)[name] | {"weights_sha256": frozen.weights_sha256}
    return Maker(name, "tokens", recipe, lambda crops: network(crops.images))


def open_column(path: Place, maker: Maker, reader: Reader) -> Column:
    """The column that a maker fills, made on first use and as long as the row table."""
    if not metadata.has_column(path, maker.column):
        metadata.create_column(
            planned_column(path, maker, reader, maker.measure(reader)), provenance(maker.recipe)
        )
    column = metadata.read_column(path, maker.column, len(reader.rows))
    metadata.resize_column(column)
    return column


def planned_column(path: Place, maker: Maker, reader: Reader, constants: Constants) -> Column:
    """The column that a maker fills, with these constants."""
    sample = next(reader.batches(range(1)))
    rows_per_shard = metadata.root_attributes(path)["rows_per_shard"]
    return column_of(path, maker, sample, constants, len(reader.rows), rows_per_shard)


def column_of(
    path: Place, maker: Maker, sample: Batch, constants: Constants, rows: int, rows_per_shard: int
) -> Column:
    """The column that a maker fills for so many rows, by what it makes of a sample."""
    arrays = maker.encode(sample, constants)
    own = {"constants": metadata.constants_recipe(constants)} if constants else {}
    return Column(
        name=maker.column,
        folder=path / maker.column,
        arrays=tuple(
            ArraySpec(
                name,
                str(array.dtype).removeprefix("torch."),
                tuple(array.shape[1:]),
                is_compressed=maker.is_compressed and name == maker.array,
            )
            for name, array in arrays.items()
        ),
        recipe={**maker.recipe, **own},
        rows=rows,
        rows_per_shard=rows_per_shard,
        constants=constants,
    )
