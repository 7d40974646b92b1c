"""Captions to tokens, with frozen text models of transformers.

B captions, X tokens that each is cut or padded to, E their features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.recipe import RecipeValue
from stages.encode.network_settings import TextSettings
from stages.encode.networks.frozen_networks import compute
from stages.encode.networks.registry import EncoderError
from stages.encode.networks.text_models import (
    PACKAGED,
    TEXT_MODELS,
    Kind,
    kind_of,
    longest,
    unpacked,
)
from stages.encode.networks.transformers_index import BOOKKEEPING, CONFIG, read_json
from stages.encode.networks.transformers_library import (
    import_transformers,
    load_whole,
    weights_folder,
    weights_sha256,
)
from stages.packages import importing_quietly
from stages.weight_files import READING_ERRORS

# The files of a tokeniser, of each of which one is enough.
TOKENISER = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt")
# Of masked captions: batches are padded to multiples of these, and then with zeros.
MULTIPLE = 16


class TextEncoder:
    """A frozen text encoder with its tokeniser.

    name: of its section; X: `max_tokens`. Raises EncoderError if it cannot be loaded.
    """

    def __init__(self, name: str, settings: TextSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        location = settings.location(name)
        location = TEXT_MODELS.get(location, location)
        with _files(location) as folder:
            config = read_json(folder, CONFIG)
            kind = kind_of(config)
            self.max_tokens = settings.max_tokens or longest(config, kind)
            self.padding = settings.padding or kind.padding
            self._tokeniser = _tokeniser(folder, settings, location)
            network = _network(folder, kind, location)
        self._network = network.eval().requires_grad_(False).to(device)
        own = config.get(kind.reads, config) if kind.reads else config
        self._arguments = {k: v for k, v in own.items() if k not in BOOKKEEPING}
        self._model_type = str(config.get("model_type"))

    def recipe(self) -> dict[str, RecipeValue]:
        """What decides the tokens, beside what its settings say of themselves."""
        words = sorted(self._tokeniser.get_vocab().items())
        return {
            "library": "transformers",
            "model": self._model_type,
            "arguments": self._arguments,
            "weights_sha256": weights_sha256(self._network),
            "vocabulary_sha256": hashlib.sha256(repr(words).encode()).hexdigest(),
            "max_tokens": self.max_tokens,
            "padding": self.padding,
            "padding_id": int(self._tokeniser.pad_token_id),
            "layer": self._settings.layer,
            "cleaning": self._settings.cleaning,
        }

    def tokenised(self, texts: Sequence[str]) -> Tensor:
        """Token ids and which of them are no padding, int64 [B, 2, X]."""
        found = self._tokeniser(
            [self._cleaned(text) for text in texts],
            truncation=True,
            padding="max_length",
            max_length=self.max_tokens,
            return_attention_mask=True,
        )
        # A text of no tokens at all would leave nothing to attend to.
        seen = torch.tensor(found["attention_mask"])
        seen[:, 0] = 1
        return torch.stack([torch.tensor(found["input_ids"]), seen], dim=1)

    @torch.inference_mode()
    def features(self, ids: Tensor) -> dict[str, Tensor]:
        """What the encoder gives for texts, as `tokenised` has them.

        `tokens`: float32 [B, X, E], zeros where padding is masked; `length`: int16 [B], how many of
        them are no padding.
        """
        length = ids[:, 1].sum(dim=1)
        if self.padding == "masked":
            longest_here = -(-int(length.max()) // MULTIPLE) * MULTIPLE
            ids = ids[:, :, : min(longest_here, self.max_tokens)]
        found = compute(self._forward, ids.to(self._device), self._settings.precision)
        tokens = found.pop("tokens")
        padding = (0, 0, 0, self.max_tokens - tokens.shape[1])
        tokens = torch.nn.functional.pad(tokens, padding)
        return {"tokens": tokens, "length": length.to(tokens.device, torch.int16), **found}

    def _forward(self, ids: Tensor) -> dict[str, Tensor]:
        tokens, seen = ids.unbind(dim=1)
        mask = seen if self.padding == "masked" else None
        output = self._network(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        layer = self._settings.layer
        hidden = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        if mask is not None:
            hidden = hidden.masked_fill(mask[..., None] == 0, 0)
        return {"tokens": hidden}

    def _cleaned(self, text: str) -> str:
        if self._settings.cleaning == "none":
            return text
        text = " ".join(text.split())
        return text.lower() if self._settings.cleaning == "lower" else text


@contextmanager
def _files(location: str) -> Iterator[Path]:
    """The folder with a model's files."""
    if location in PACKAGED:
        with unpacked(location) as folder:
            yield folder
    else:
        yield weights_folder(location, CONFIG, TOKENISER, beside=BESIDE)


def _tokeniser(folder: Path, settings: TextSettings, location: str) -> Any:
    transformers = import_transformers(f"the text encoder {location}")
    try:
        with importing_quietly():
            tokeniser = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    except READING_ERRORS as error:
        raise EncoderError(f"{location}: its tokeniser cannot be read: {error!r}") from error
    if settings.padding_id is not None:
        tokeniser.pad_token = tokeniser.convert_ids_to_tokens(settings.padding_id)
    elif tokeniser.pad_token is None:
        tokeniser.pad_token = tokeniser.eos_token
    return tokeniser


def _network(folder: Path, kind: Kind, location: str) -> Any:
    transformers = import_transformers(f"the text encoder {location}")
    what = "text encoder"
    return load_whole(getattr(transformers, kind.network), folder, location, what, what)
