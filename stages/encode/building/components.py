"""Columns of principal components, which are made of an encoder's cached tokens alone.

B images, N rows, T tokens, D features, R components.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache import ledger, metadata
from cache.errors import IncompleteCacheError
from cache.layout import FEATURES, FLIPPED, Constants
from cache.order import permutation
from cache.reader import PartialReader
from cache.rows import RowTable
from cache.stores.places import Place
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import Given, Maker, Tensors
from stages.encode.building.principal_components import (
    STATISTICS,
    RunningMoments,
    principal_components,
    projected,
)
from stages.encode.building.recipes import declared_recipes, features_column
from stages.encode.building.token_batches import Batch, Reader, TokenReader
from stages.encode.images.crop_batches import Crops
from stages.encode.network_settings import ComponentsSettings
from stages.encode.networks.registry import EncoderError
from stages.progress import progress


@dataclass(frozen=True)
class ComponentsMaker(Maker):
    """Makes a column of components [N, T, R], and fits what makes them.

    own: the settings; device: that fits; plain: the column of images that are not mirrored, whose
    statistics that of their mirror images shares, None in a column of such images.
    """

    own: ComponentsSettings
    device: torch.device
    plain: Place | None = None

    @property
    def constants(self) -> tuple[str, ...]:
        return STATISTICS

    def shapes(self, values: Tensor) -> Tensors:
        feature = torch.ones(values.shape[-1])
        components = feature.expand(self.own.count, -1)
        return {name: components if name == "components" else feature for name in STATISTICS}

    def measure(self, reader: Reader) -> Constants:
        """The statistics, fitted once; rows that are added later change nothing of them."""
        if self.plain is not None:
            found = metadata.read_column(
                self.plain.parents[1], FEATURES + self.plain.name, len(reader.rows)
            )
            return found.constants
        chosen = np.sort(permutation(len(reader.rows), self.own.seed)[: self.own.sample_rows])
        # What has no float64 leaves it to the CPU.
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        moments: RunningMoments | None = None
        with progress(f"{self.column}: fit", len(chosen), "images") as advance:
            for batch in reader.batches(chosen.tolist()):
                tokens = self.network(batch)[self.array][torch.from_numpy(batch.valid)]
                moments = moments or RunningMoments(tokens.shape[-1], device)
                moments.add(tokens.flatten(0, 1))
                advance(len(batch), "")
        if moments is None or not moments.count:
            raise EncoderError(f"{self.column}: no image of its sample could be decoded.")
        statistics = principal_components(moments, self.own.count)
        return {name: values.cpu().numpy() for name, values in statistics.items()}

    def values(self, batch: Batch, constants: Given) -> Tensors:
        tokens = self.network(batch)[self.array]
        there = {n: torch.as_tensor(c, device=tokens.device) for n, c in constants.items()}
        return {self.array: projected(tokens, there)}


def open_components(
    settings: EncodeSettings, name: str, rows: RowTable, pool: Executor, device: torch.device
) -> tuple[ComponentsMaker, TokenReader]:
    """What makes a column of components, and the reader of the tokens that it makes it of.

    Raises IncompleteCacheError while shards of these are missing.
    """
    maker = components_maker(settings, name, device)
    source = metadata.read_column(settings.cache.path, str(maker.recipe["source"]), len(rows))
    if missing := ledger.missing(source, rows):
        raise IncompleteCacheError(
            f"{len(missing)} of {source.shards} shards are missing", where=source.folder
        )
    known = replace(maker, recipe={**maker.recipe, "source_fingerprint": source.fingerprint})
    size = settings.build.images_at_once(device)
    return known, TokenReader(PartialReader(source), rows, size, pool)


def components_maker(settings: EncodeSettings, name: str, device: torch.device) -> ComponentsMaker:
    """What makes a column of components, by the configuration alone."""
    title = name.removeprefix(FEATURES).removesuffix(FLIPPED)
    plain = settings.cache.path / features_column(title)
    return ComponentsMaker(
        column=name,
        array="tokens",
        recipe=declared_recipes(settings)[name],
        network=lambda batch: {"tokens": batch.tokens},
        own=settings.components[title],
        device=device,
        plain=plain if name.endswith(FLIPPED) else None,
    )


def components_columns(settings: EncodeSettings) -> list[str]:
    """The names of the columns of components, in the order in which they can be made."""
    return [name for name, recipe in declared_recipes(settings).items() if "source" in recipe]


def check_components(
    settings: EncodeSettings, makers: Sequence[Maker], device: torch.device
) -> None:
    """Raise EncoderError if more components are asked for than tokens have features.

    makers: of the encoders' columns.
    """
    side, made_by = settings.dataset.resolution, {maker.column: maker for maker in makers}
    blank = Crops.of(torch.zeros(1, 3, side, side, dtype=torch.uint8)).to(device)
    for name, own in settings.components.items():
        features = made_by[features_column(own.encoder)].network(blank)["tokens"].shape[-1]
        if own.count > features:
            raise EncoderError(
                f"components.{name}.count: tokens of {own.encoder} have {features} features, got "
                f"{own.count}"
            )
