"""One vector for each image from its captions, to find images that are told of alike.

B images, X tokens of a text, E their features.
"""

import numpy as np
import numpy.typing as npt

from cache.captions import Captions
from cache.layout import Column
from cache.reader import ColumnReader


class CaptionVectors:
    """The mean of an image's captions, each the mean of its tokens without padding.

    reader: of a text encoder's column; captions: of the images.
    """

    has_class_token = False

    def __init__(self, reader: ColumnReader, captions: Captions) -> None:
        self._reader, self._captions = reader, captions

    @property
    def column(self) -> Column:
        """The text encoder's."""
        return self._reader.column

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Of images [B] that have captions, [B, E]."""
        count, start = self._captions.count[rows], self._captions.start[rows]
        owners = np.repeat(np.arange(len(rows)), count)
        places = np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())
        texts, inverse = np.unique(self._captions.text[places], return_inverse=True)
        tokens = self._reader.values("tokens", texts)
        length = self._reader.read("length", texts).astype(np.int64)
        is_seen = np.arange(tokens.shape[1]) < length[:, None]
        means = (tokens * is_seen[..., None]).sum(axis=1) / length[:, None]
        total = np.zeros((len(rows), tokens.shape[2]), np.float32)
        np.add.at(total, owners, means[inverse])
        found: npt.NDArray[np.float32] = (total / count[:, None]).astype(np.float32)
        return found
