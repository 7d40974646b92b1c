"""Training as it is without a cache of tokens: the encoders see the images at every step.

B images of a rank, T tokens, D features.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.rows import read_rows
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import load_features_maker
from stages.encode.images.crop_batches import Crops
from stages.encode.images.crop_sources import open_crops, open_source
from stages.placement import Placement
from stages.train.batches import CachedBatches, Named, Order
from stages.train.cached_data import CachedData, encoder_of


class OnlineBatches(CachedBatches):
    """Batches of the cached moments, with tokens that are computed when they are read.

    encode: what the encoders and their images are; all else as in CachedBatches.
    """

    def __init__(
        self,
        encode: EncodeSettings,
        data: CachedData,
        names: Sequence[str],
        order: Order,
        place: Placement,
        *options: Any,
        **named: Any,
    ) -> None:
        super().__init__(data, (), order, place, *options, **named)
        source, rows = open_source(encode), read_rows(encode.cache.path)
        self._pool = ThreadPoolExecutor(encode.build.decoding_threads())
        crops = open_crops(encode, source, rows, self._pool, place.device)
        self._crops = replace(crops, batch_size=order.batch_size)
        self._makers = {
            name: load_features_maker(encode, encoder_of(name), place.device) for name in names
        }

    def read(self, step: int) -> Named:
        batch, crops = super().read(step), self.crops(step)
        # A copy: what inference made cannot enter a backward pass.
        tokens = {
            name: maker.network(crops)["tokens"].clone() for name, maker in self._makers.items()
        }
        return {**batch, **tokens}

    def crops(self, step: int) -> Crops:
        """The images of a step, decoded anew, each in the view that is wanted of it."""
        views, rows = np.divmod(self.rows(step), len(self._labels))
        (crops,) = self._crops.batches(rows.tolist())
        is_mirrored = torch.from_numpy(views == 1)[:, None, None, None]
        images: Tensor = torch.where(is_mirrored, crops.mirrored().images, crops.images)
        return replace(crops, images=images)

    def close(self) -> None:
        super().close()
        self._pool.shutdown()
