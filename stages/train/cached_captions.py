"""What a run sees of captions: a text encoder's tokens, one caption an image at each step.

B images, N rows, X tokens, E their features.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cache.captions import Captions, has_captions
from cache.errors import IncompleteCacheError
from cache.layout import FEATURES
from cache.rows import Places, RowTable
from cache.storage import STORAGES
from cache.stores.kept_rows import BY_RANGES, StoreReading
from cache.stores.places import Place
from stages.model.conditions import Context

# Of a batch: tokens [B, X, E], and which of them the model attends to, bool [B, X].
CONTEXT, SEEN = "context", "seen"
# Constants of a column, of the text that says nothing.
EMPTY_TOKENS, EMPTY_LENGTH = "empty_tokens", "empty_length"


class CachedCaptions:
    """The captions of a cache's images as one of its text encoders sees them.

    column: of the encoder; has_any: bool [N], which images have captions; features: E; tokens: X.
    Raises IncompleteCacheError if there are none, or not of all texts.
    """

    def __init__(
        self,
        path: Place,
        text: str,
        rows: RowTable,
        *,
        verify: bool,
        reading: StoreReading = BY_RANGES,
    ) -> None:
        if not has_captions(path):
            raise IncompleteCacheError(
                "it has no captions", where=path, remedy="Run `repa-cache build` to add them."
            )
        self._captions = Captions(path, rows, reading)
        self.reader = self._captions.cache.column(FEATURES + text, verify=verify)
        self.column = self.reader.column
        self.has_any: npt.NDArray[np.bool_] = self._captions.count > 0
        self.fingerprint = self._captions.fingerprint
        self.tokens, self.features = self.column.array("tokens").row_shape
        self.is_masked = self.column.recipe["padding"] == "masked"
        self._storage = STORAGES[str(self.column.recipe["storage"])]

    @property
    def stored(self) -> tuple[str, ...]:
        """The arrays that a batch is made from."""
        return ("tokens", *self._storage.beside, *(("length",) if self.is_masked else ()))

    def rows(self, images: Places, drawn: npt.NDArray[np.uint64]) -> Places:
        """The text of each of images [B] that a draw, a number for each, chooses."""
        return self._captions.chosen(images, drawn)

    def text(self, row: int) -> str:
        """A text by its row."""
        return str(self._captions.texts[row])

    def decoder(self, device: torch.device) -> "ContextDecoder":
        return ContextDecoder(self, device)

    def empty(self, device: torch.device) -> Context:
        """What stands for a caption that is dropped, as the only one of a batch."""
        constants = self.column.constants
        tokens = torch.from_numpy(constants[EMPTY_TOKENS]).to(device)[None]
        if not self.is_masked:
            return Context(tokens)
        length = torch.from_numpy(constants[EMPTY_LENGTH]).to(device)
        return Context(tokens, _seen(length, self.tokens))

    def read(self, texts: Places, device: torch.device) -> Context:
        """Some texts, by their rows."""
        arrays = {n: torch.from_numpy(self.reader.read(n, texts)).to(device) for n in self.stored}
        found = self.decoder(device)(arrays)
        return Context(found[CONTEXT], found.get(SEEN))

    def storage_constants(self) -> Mapping[str, npt.NDArray[np.float32]]:
        return {name: self.column.constants[name] for name in self._storage.constants}


class ContextDecoder:
    """Turns the stored arrays of captions into those of a batch, on the device."""

    def __init__(self, cached: CachedCaptions, device: torch.device) -> None:
        self._tokens = cached.tokens
        self._storage = STORAGES[str(cached.column.recipe["storage"])]
        self._constants = {
            name: torch.from_numpy(values).to(device)
            for name, values in cached.storage_constants().items()
        }

    def __call__(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens, float32, and which of them are seen, if not all. arrays: those stored."""
        made = {CONTEXT: self._storage.decode("tokens", arrays, self._constants)}
        if "length" in arrays:
            made[SEEN] = _seen(arrays["length"], self._tokens)
        return made


def _seen(length: Tensor, tokens: int) -> Tensor:
    """Which of so many tokens are of texts with these lengths, [B], as bool [B, X]."""
    return torch.arange(tokens, device=length.device) < length[:, None]


def with_dropped(context: Context, dropped: Tensor, empty: Context) -> Context:
    """Captions of which some, bool [B], are replaced by the empty text, which is a batch of one."""
    tokens = torch.where(dropped[:, None, None], empty.tokens, context.tokens)
    if context.seen is None or empty.seen is None:
        return Context(tokens)
    return Context(tokens, torch.where(dropped[:, None], empty.seen, context.seen))
