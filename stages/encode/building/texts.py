"""Columns of text encoders: their recipes, and what makes them of the texts of a cache.

B texts, X tokens, E features.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from cache.layout import FEATURES, Constants
from cache.rows import RowTable
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import Maker, Tensors
from stages.encode.building.recipes import declared_recipes, text_column
from stages.encode.building.token_batches import Reader, Tag
from stages.encode.images.sources import Source
from stages.encode.networks.frozen_networks import FittingNetwork
from stages.encode.networks.registry import EncoderError
from stages.encode.networks.text_encoder import TextEncoder

if TYPE_CHECKING:
    from cache.recipe import RecipeValue

EMPTY_TOKENS, EMPTY_LENGTH = "empty_tokens", "empty_length"


@dataclass(frozen=True)
class TextBatch:
    """Some texts. valid: bool [B], as texts are always."""

    texts: npt.NDArray[np.object_]

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        return np.ones(len(self), np.bool_)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    def __getitem__(self, part: slice | npt.NDArray[np.intp]) -> "TextBatch":
        return TextBatch(self.texts[part])

    def to(self, device: torch.device) -> "TextBatch":  # noqa: ARG002 - they are read on the host
        return self


@dataclass(frozen=True)
class TextReader:
    """Gives the texts of rows. failures: stays empty, as every text can be read."""

    rows: RowTable
    batch_size: int
    failures: dict[str, str] = field(default_factory=dict)

    def batches(self, rows: Sequence[int]) -> Iterator[TextBatch]:
        """The texts of some rows, `batch_size` at a time."""
        return (batch for _, batch in self.tagged_batches([(None, rows)]))

    def tagged_batches(
        self, groups: Iterable[tuple[Tag, Sequence[int]]]
    ) -> Generator[tuple[Tag, TextBatch]]:
        """The texts of groups of rows, each batch with its group's tag."""
        for tag, rows in groups:
            for start in range(0, len(rows), self.batch_size):
                some = np.asarray(rows[start : start + self.batch_size])
                yield tag, TextBatch(self.rows.key[some].astype(object))


@dataclass(frozen=True)
class TextMaker(Maker):
    """Makes a column of a text encoder's tokens, and keeps those of the empty text beside it."""

    @property
    def constants(self) -> tuple[str, ...]:
        return (*self.storage.constants, EMPTY_TOKENS, EMPTY_LENGTH)

    @property
    def is_compressed(self) -> bool:
        """Whether much of it is padding, which is zeros."""
        return self.recipe["padding"] == "masked"

    def measure(self, reader: Reader) -> Constants:
        empty = self.network(TextBatch(np.array([""], object)))
        tokens, length = (empty[name].cpu().numpy() for name in ("tokens", "length"))
        return {**super().measure(reader), EMPTY_TOKENS: tokens[0], EMPTY_LENGTH: length}


def load_text_makers(
    settings: EncodeSettings, device: torch.device, source: Source | None
) -> list[TextMaker]:
    """Load every text encoder of the configuration and say which columns they make.

    A column holds `tokens` [M, X, E] and `length` [M]. source: the data set, which may bring tokens
    along. Raises EncoderError if it should, and does not.
    """
    return [
        _imported(settings, name, source) if own.imported else _maker(settings, name, device)
        for name, own in settings.texts.items()
    ]


def _imported(settings: EncodeSettings, name: str, source: Source | None) -> TextMaker:
    """What takes over the tokens that a data set brings along."""
    contexts = None if source is None else source.contexts
    if contexts is None:
        raise EncoderError(
            f"texts.{name}.imported: the data set is not there, or brings no tokens along."
        )
    tokens = len(contexts.empty())
    column = FEATURES + name
    recipe = declared_recipes(settings)[text_column(name)]
    own: dict[str, RecipeValue] = {"max_tokens": tokens, "padding": "seen"}

    def network(batch: TextBatch) -> Tensors:
        read = [contexts.read(text) if text else contexts.empty() for text in batch.texts]
        lengths = torch.full((len(read),), tokens, dtype=torch.int16)
        return {"tokens": torch.from_numpy(np.stack(read)), "length": lengths}

    return TextMaker(column, "tokens", recipe | own, network)


def _maker(settings: EncodeSettings, name: str, device: torch.device) -> TextMaker:
    encoder = TextEncoder(name, settings.texts[name], device)
    column = FEATURES + name
    network = FittingNetwork(column, encoder.features)
    recipe = declared_recipes(settings)[text_column(name)] | encoder.recipe()
    return TextMaker(
        column, "tokens", recipe, lambda batch: network(encoder.tokenised(batch.texts.tolist()))
    )
