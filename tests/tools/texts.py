"""Tiny but real text models of transformers, and images with captions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import stages.vision  # noqa: F401 - before what transformers imports

WORDS = (
    *("a", "an", "the", "of", "on", "in", "red", "green", "blue", "small", "large", "round", "cup"),
    *("plate", "spoon", "table", "coffee", "drink", "photo", "seen", "from", "above", "hot"),
    *("white", "brown", "with", "beside", "wooden", "old", "quiet", "morning"),
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
# What every image of a folder is told of by, without its number.
SAYING = ("a cup of coffee", "the small cup on a table", "hot drink seen from above")


def save_tokeniser(folder: Path) -> None:
    """A tokeniser of whole words, which puts <s> and </s> at the ends."""
    vocabulary = {
        word: number for number, word in enumerate([*SPECIAL, *WORDS, *map(str, range(40))])
    }
    tokeniser = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokeniser.pre_tokenizer = pre_tokenizers.Whitespace()
    tokeniser.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokeniser,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)


SIZES = {
    "vocab_size": len(SPECIAL) + len(WORDS) + 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_text_model(folder: Path, kind: str, **more: object) -> Path:
    """A model with random weights and its tokeniser, as `save_pretrained` writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = KINDS[kind]({**SIZES, **more})
    made.save_pretrained(folder)
    save_tokeniser(folder)
    return folder


def _clip(sizes: Mapping[str, object]) -> torch.nn.Module:
    own = {"max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPTextConfig(**{**sizes, **own, "hidden_act": "quick_gelu"})
    return transformers.CLIPTextModel(config)


def _whole_clip(sizes: Mapping[str, object]) -> torch.nn.Module:
    text = {**sizes, "max_position_embeddings": 12, "eos_token_id": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    vision.pop("vocab_size")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return transformers.CLIPModel(config)


def _siglip(sizes: Mapping[str, object]) -> torch.nn.Module:
    config = transformers.SiglipTextConfig(**{**sizes, "max_position_embeddings": 12})
    return transformers.SiglipTextModel(config)


def _t5(sizes: Mapping[str, object]) -> torch.nn.Module:
    config = transformers.T5Config(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["hidden_size"],
        d_ff=sizes["intermediate_size"],
        d_kv=16,
        num_layers=2,
        num_heads=2,
    )
    return transformers.T5EncoderModel(config)


def _bert(sizes: Mapping[str, object]) -> torch.nn.Module:
    return transformers.BertModel(transformers.BertConfig(**sizes))


def _gemma(sizes: Mapping[str, object]) -> torch.nn.Module:
    config = transformers.Gemma2Config(
        **{**sizes, "head_dim": 16, "num_key_value_heads": 1, "pad_token_id": 0}
    )
    return transformers.Gemma2Model(config)


KINDS = {
    "clip": _clip,
    "whole clip": _whole_clip,
    "siglip": _siglip,
    "t5": _t5,
    "bert": _bert,
    "gemma": _gemma,
}


def captions_of(key: str) -> list[str]:
    """The captions of an image in a folder of classes: some of them are also of others."""
    number = int(Path(key).stem)
    return [f"{saying} {number % 5}" for saying in SAYING[: 1 + number % 3]]


def write_beside(images: Path) -> None:
    """A text file beside each image."""
    for path in images.rglob("*.jpg"):
        path.with_suffix(".txt").write_text("\n".join(captions_of(path.name)) + "\n")


def coco(keys: Sequence[str], captions: Mapping[str, Sequence[str]]) -> str:
    """MS-COCO's annotations: captions in another order than images."""
    ids = {key: 100 + number for number, key in enumerate(keys)}
    images = [{"id": ids[key], "file_name": Path(key).name, "width": 40} for key in keys]
    pairs = [(key, text) for key in reversed(keys) for text in captions[key]]
    annotations = [
        {"image_id": ids[key], "id": 900 - number, "caption": text}
        for number, (key, text) in enumerate(pairs)
    ]
    return json.dumps({"info": {}, "images": images, "annotations": annotations})


TEXTS = """
[texts.tiny]
model = "{folder}"
"""
# What makes the tiny configuration one of captions.
WITH_TEXT = ("train.model=MMDiT-XS/2", "train.text=tiny", "sample.labels=random")
