"""int8 tokens of encoders with real weights, and training on them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from runs import cached_batches
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cache.order import order
from cache.reader import Cache
from cache.storage import FLOAT_STORAGES
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.images.sources.samples import SAMPLE_PHOTOGRAPHS, open_photograph
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import ENCODERS
from stages.placement import Placement
from stages.train.log import read_log
from stages.train.loop import train
from stages.train.terms import TERMS
from stages.train.terms.repa import Repa

CPU = torch.device("cpu")
HERE = Placement(CPU)


def crops(side: int, each: int) -> Iterator[Tensor]:
    """Crops of real photographs, uint8 [B, 3, S, S]; half of each to measure scales on."""
    generator = np.random.default_rng(0)
    for name in SAMPLE_PHOTOGRAPHS:
        pixels = np.asarray(open_photograph(name, side + 60))
        corners = generator.integers(0, [pixels.shape[0] - side, pixels.shape[1] - side], (each, 2))
        images = [pixels[y : y + side, x : x + side] for y, x in corners.tolist()]
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def check_int8(encode: Callable[[Tensor], Tensor], side: int, each: int = 4) -> None:
    """Scales measured on half of the crops; cosines of the tokens of the other half."""
    tokens = torch.stack([encode(images) for images in crops(side, each)])
    sample, rest = tokens[:, ::2].flatten(0, 1), tokens[:, 1::2].flatten(0, 1)
    int8 = FLOAT_STORAGES["int8"]
    constants = int8.measure(sample)
    stored = int8.encode("tokens", rest, constants)
    cosine = cosine_similarity(int8.decode("tokens", stored, constants), rest, dim=-1)
    assert cosine.mean() >= 0.9999
    assert cosine.min() >= 0.999


def test_int8_tokens_of_efficientnet_have_the_direction_of_its_tokens() -> None:
    encoder = FrozenEncoder(ENCODERS["efficientnet-lite0"], 256, None, CPU)
    check_int8(lambda images: encoder.features(images)["tokens"], side=128)


@pytest.mark.slow
def test_int8_tokens_of_a_vision_transformer_have_the_direction_of_its_tokens() -> None:
    from saliency_vit import load_saliency_vit

    model, spec = load_saliency_vit(), ENCODERS["dinov2-vit-s"]
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))

    @torch.inference_mode()
    def tokens(images: Tensor) -> Tensor:
        features: Tensor = model.forward_features((images / 255 - mean) / std)
        return features[:, 1:]

    check_int8(tokens, side=224)


def test_training_on_int8_tokens_follows_training_on_float16(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    alignment = {}
    for storage in FLOAT_STORAGES:
        config = tiny(
            f"encoders.efficientnet-lite0.storage={storage}",
            f"cache.path={tmp_path / storage}.zarr",
            f"train.run={tmp_path / storage}",
        )
        build(config.encode, CPU)
        train(config.train, config.tensors, HERE)
        log = read_log(config.train.run / "log.jsonl")
        alignment[storage] = [line["alignment/efficientnet-lite0"] for line in log]
    np.testing.assert_allclose(alignment["int8"], alignment["float16"], atol=1e-3)


def test_training_reads_the_codes_and_not_the_token_scales(tiny: Callable[..., Config]) -> None:
    config = tiny("encoders.efficientnet-lite0.storage=int8")
    build(config.encode, CPU)
    column, path = "features/efficientnet-lite0", config.cache.path
    rows = order(0, 0, 0, 1, rows=21, batch=4)
    expected = torch.from_numpy(Cache(path).column(column).values("tokens", rows))
    for shard in range(3):
        (path / column / f"token_scale/c.{shard}.0").unlink()
    batches = cached_batches(config, HERE)
    with closing(batches):
        tokens = batches.read(0)["efficientnet-lite0/directions"]
    torch.testing.assert_close(normalize(tokens, dim=-1), normalize(expected, dim=-1))


class ByLength(Repa):
    """An alignment to which the length of a token matters."""

    needs_lengths: ClassVar[bool] = True

    kind: Literal["by-length"] = "by-length"  # type: ignore[assignment]


@pytest.mark.parametrize("storage", FLOAT_STORAGES)
def test_an_alignment_that_needs_lengths_gets_tokens_as_they_were(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.setitem(TERMS, "by-length", ByLength)
    config = tiny(f"encoders.efficientnet-lite0.storage={storage}", "train.align.0.kind=by-length")
    build(config.encode, CPU)
    reader = Cache(config.cache.path).column("features/efficientnet-lite0")
    with closing(cached_batches(config, HERE)) as batches:
        tokens = batches.read(0)["efficientnet-lite0/tokens"]
        expected = torch.from_numpy(reader.values("tokens", batches.rows(0)))
    torch.testing.assert_close(tokens, expected, rtol=1e-6, atol=1e-6)
