"""Text encoders: every kind of transformers, what padding does, and the ids of CLIP's tokeniser."""

import gzip
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from places import GOLDEN
from texts import KINDS, save_text_model
from torch import Tensor
from torch.testing import assert_close

from stages.encode.network_settings import TextSettings
from stages.encode.networks.registry import EncoderError
from stages.encode.networks.text_encoder import TextEncoder

CPU = torch.device("cpu")
TEXTS = ["a cup of coffee", "the red plate on a wooden table", ""]
SEEN = {"clip", "whole clip", "siglip"}


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., TextEncoder]:
    def make(kind: str, **settings: Any) -> TextEncoder:
        folder = tmp_path / kind
        if not folder.exists():
            save_text_model(folder, kind)
        return TextEncoder("tiny", TextSettings(model=str(folder), **settings), CPU)

    return make


def features(encoder: TextEncoder, texts: list[str]) -> dict[str, Tensor]:
    return encoder.features(encoder.tokenised(texts))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_tokens_and_lengths(
    encoder: Callable[..., TextEncoder], kind: str
) -> None:
    made = encoder(kind)
    found = features(made, TEXTS)
    tokens = 12 if kind in SEEN else 120
    assert found["tokens"].shape == (3, tokens, 32)
    assert found["length"].tolist() == [6, 9, 2]
    assert found["length"].dtype is torch.int16
    recipe = made.recipe()
    assert recipe["padding"] == ("seen" if kind in SEEN else "masked")
    assert (recipe["max_tokens"], recipe["padding_id"]) == (tokens, 0)
    beyond = found["tokens"][2, 2:]
    assert beyond.any().item() == (kind in SEEN)


def test_clip_s_tokens_are_those_of_transformers_without_a_mask(
    encoder: Callable[..., TextEncoder], tmp_path: Path
) -> None:
    found = features(encoder("clip"), TEXTS)
    folder = tmp_path / "clip"
    tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.CLIPTextModel.from_pretrained(folder)
    ids = tokeniser(
        TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = network(input_ids=ids["input_ids"]).last_hidden_state
    assert torch.equal(found["tokens"], expected)


@pytest.mark.parametrize("kind", ["t5", "bert", "gemma"])
def test_masked_tokens_do_not_depend_on_padding(
    encoder: Callable[..., TextEncoder], tmp_path: Path, kind: str
) -> None:
    every = features(encoder(kind), TEXTS)["tokens"]
    for number, text in enumerate(TEXTS):
        alone = features(encoder(kind, max_tokens=20), [text])["tokens"][0]
        assert_close(every[number, :20], alone, rtol=1e-5, atol=1e-5)
    classes = {"t5": "T5EncoderModel", "bert": "BertModel", "gemma": "Gemma2Model"}
    network = getattr(transformers, classes[kind]).from_pretrained(tmp_path / kind)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)([TEXTS[1]])["input_ids"]
    with torch.no_grad():
        expected = network(input_ids=torch.tensor(ids)).last_hidden_state[0]
    assert_close(every[1, : len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_settings_decide_tokens_and_are_told_in_the_recipe(
    encoder: Callable[..., TextEncoder],
) -> None:
    plain = encoder("bert", max_tokens=16)
    layer = encoder("bert", max_tokens=16, layer=-2)
    assert not torch.equal(features(plain, TEXTS)["tokens"], features(layer, TEXTS)["tokens"])
    last = plain._network(torch.tensor([[1, 9, 2]]), output_hidden_states=True).hidden_states[-2]
    assert_close(
        layer._forward(torch.tensor([[[1, 9, 2], [1, 1, 1]]]))["tokens"], last, rtol=1e-5, atol=1e-5
    )
    lower = encoder("bert", max_tokens=16, cleaning="lower")
    odd = ["  A Cup\tof  coffee\n", *TEXTS[1:]]
    assert torch.equal(lower.tokenised(odd), plain.tokenised(TEXTS))
    assert not torch.equal(plain.tokenised(odd), plain.tokenised(TEXTS))
    padded = encoder("clip", padding_id=7)
    assert padded.tokenised([""])[0, 0].tolist() == [1, 2, *[7] * 10]
    recipes = [one.recipe() for one in (plain, layer, lower, padded)]
    assert len({json.dumps(recipe, sort_keys=True) for recipe in recipes}) == 4
    assert encoder("clip", padding="masked").recipe()["padding"] == "masked"


def test_the_text_tower_of_a_whole_clip_is_taken(tmp_path: Path) -> None:
    whole = save_text_model(tmp_path / "whole", "whole clip")
    made = TextEncoder("tiny", TextSettings(model=str(whole)), CPU)
    network = transformers.CLIPModel.from_pretrained(whole)
    ids = made.tokenised(TEXTS)
    with torch.no_grad():
        expected = network.text_model(input_ids=ids[:, 0]).last_hidden_state
    assert torch.equal(made.features(ids)["tokens"], expected)
    text = {k: v for k, v in made.recipe().items() if k == "arguments"}
    assert "vision_config" not in json.dumps(text)


def test_what_is_no_text_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "bert", "bert")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(EncoderError, match="bert cannot be loaded as a text encoder"):
        TextEncoder("tiny", TextSettings(model=str(folder)), CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match=r"has no config\.json"):
        TextEncoder("tiny", TextSettings(model=str(tmp_path / "empty")), CPU)


def test_clip_s_tokeniser_gives_the_published_ids(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "clip_token_ids.json").read_text())
    save_text_model(tmp_path / "clip", "clip", vocab_size=49408, max_position_embeddings=77)
    save_clip_tokeniser(tmp_path / "clip")
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / "clip" / name).unlink(missing_ok=True)
    encoder = TextEncoder("clip", TextSettings(model=str(tmp_path / "clip"), max_tokens=77), CPU)
    for entry in golden["captions"]:
        ids, seen = encoder.tokenised([entry["caption"]])[0].tolist()
        assert ids == entry["ids"] + [49407] * (77 - len(entry["ids"])), entry["caption"]
        assert sum(seen) == len(entry["ids"])


def save_clip_tokeniser(folder: Path) -> None:
    """OpenAI's merges, as the package open_clip brings them along, in transformers' files."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    content = gzip.decompress(
        Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    )
    merges = content.decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_letters().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )


def bytes_to_letters() -> dict[int, str]:
    """The letter that stands for each byte in the vocabularies of GPT-2 and CLIP."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    pairs = {byte: chr(byte) for byte in own}
    return pairs | {byte: chr(256 + number) for number, byte in enumerate(others)}
