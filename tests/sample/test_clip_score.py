"""CLIP score: against transformers' own preprocessing and model, and of samples of prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from runs import CPU
from safetensors.torch import load_file, save_file
from texts import save_text_model

from pipeline.config import Config
from stages.encode.networks.registry import EncoderError
from stages.evaluate.clip_score import ClipEmbeddings, clip_scores
from stages.evaluate.evaluate import evaluate, open_samples
from stages.evaluate.results import EvaluateError, read_results

CAPTIONS = ["a red cup", "the table", "a hot drink", "a red cup"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = save_text_model(tmp_path / "clip", "whole clip")
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size=size, crop_size=crop).save_pretrained(folder)
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    source = np.random.default_rng(0)
    for number in range(len(CAPTIONS)):
        pixels = source.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    return folder


def expected(folder: Path, samples: Path) -> torch.Tensor:
    """By transformers alone, image after image."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    tokeniser = transformers.AutoTokenizer.from_pretrained(folder)
    cut = {"padding": "max_length", "max_length": 12, "truncation": True}
    found = []
    for number, caption in enumerate(CAPTIONS):
        image = Image.open(samples / f"{number:06d}.png")
        with torch.no_grad():
            output = model(
                pixel_values=processor(images=image, return_tensors="pt")["pixel_values"],
                input_ids=tokeniser([caption], return_tensors="pt", **cut)["input_ids"],
            )
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        found.append((100 * cosine).clamp(min=0))
    return torch.cat(found)


def test_scores_are_those_of_transformers(
    tiny: Callable[..., Config], clip: Path, samples: Path
) -> None:
    config = tiny(f"evaluate.clip_model={clip}", "evaluate.frechet_encoders=[]")
    settings = config.evaluate.model_copy(update={"reference": samples})
    ((result,),) = evaluate(settings, [open_samples(samples, 2)], config.encode, CPU)
    scores = expected(clip, samples)
    assert result.metric == "clip_score"
    assert result.value == pytest.approx(scores.mean().item(), rel=1e-3)
    assert result.deviation == pytest.approx(scores.std().item() / 2, rel=1e-2)
    assert (result.images, result.reference) == (4, None)
    assert read_results(samples) == [result]


def test_samples_without_captions_and_models_that_are_no_clip_are_refused(
    tiny: Callable[..., Config], clip: Path, samples: Path, tmp_path: Path
) -> None:
    (samples / "captions.json").unlink()
    config = tiny(f"evaluate.clip_model={clip}", "evaluate.frechet_encoders=[]")
    settings = config.evaluate.model_copy(update={"reference": samples})
    with pytest.raises(EvaluateError, match="the captions of its images are not known"):
        evaluate(settings, [open_samples(samples, 2)], config.encode, CPU)
    bert = save_text_model(tmp_path / "bert", "bert")
    transformers.CLIPImageProcessor().save_pretrained(bert)
    with pytest.raises(EncoderError, match="is no CLIP"):
        ClipEmbeddings(str(bert), CPU.device)
    weights = load_file(clip / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 of \d+ tensors .* visual_projection"):
        ClipEmbeddings(str(clip), CPU.device)


def test_a_score_is_a_hundred_cosines_and_not_below_zero() -> None:
    one = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    other = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found: Any = clip_scores(one, other)
    np.testing.assert_allclose(found, [100, 100 / 2**0.5, 0])
