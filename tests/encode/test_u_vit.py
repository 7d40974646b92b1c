"""What U-ViT's scripts left of MS-COCO: moments and captions' tokens that are taken over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packing
import pytest
import torch
from PIL import Image
from runs import CPU, trained
from texts import save_text_model
from torch.testing import assert_close

import repa_cache
from cache.captions import Captions
from cache.errors import StaleCacheError
from cache.reader import Cache
from cache.verify import find_all_faults
from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.images.sources import SourceError
from stages.encode.network_settings import TextSettings
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.text_encoder import TextEncoder
from stages.sample.generate import sample
from stages.sample.prompts import TextSource
from stages.sample.sampled_weights import SampleOptions
from stages.sample.solvers.solver import SampleError

SIDE = 128


def write(folder: Path, mmdit: Any) -> None:
    """Two images with the published moments, three captions, and a third image without one."""
    generator = np.random.default_rng(0)
    moments, contexts = mmdit["in.moments_logvar"].numpy(), mmdit["in.context"].numpy()
    for number in range(3):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", moments[number % 2])
    np.save(folder / "0_0.npy", contexts[0])
    np.save(folder / "0_1.npy", contexts[1])
    np.save(folder / "1_0.npy", contexts[1])
    np.save(folder.parent / "empty_context.npy", mmdit["in.empty_context"].numpy())


@pytest.fixture
def configured(tiny: Callable[..., Config], tmp_path: Path, mmdit: Any) -> Callable[..., Config]:
    folder = tmp_path / "features" / "train"
    folder.mkdir(parents=True)
    write(folder, mmdit)
    return lambda *more: tiny(
        "dataset.source=u-vit",
        f"dataset.path={folder}",
        f"dataset.resolution={SIDE}",
        "encoders.efficientnet-lite0.input_size=256",
        "latents.imported=true",
        "texts.clip-vit-L.imported=true",
        *more,
    )


def test_moments_and_tokens_are_taken_over_and_not_made_again(
    configured: Callable[..., Config], mmdit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a network ran")

    for network in (Autoencoder, TextEncoder):
        monkeypatch.setattr(network, "__init__", fail)
    config = configured()
    assert build(config.encode, CPU.device).missing == 0
    cache = Cache(config.cache.path)
    rows = [cache.rows.key.tolist().index(f"{number}.png") for number in range(3)]
    moments = torch.from_numpy(cache.column("latents/tiny-vae").values("moments", rows[:2]))
    assert_close(moments, mmdit["in.moments"], rtol=1e-3, atol=1e-6)
    captions = Captions(config.cache.path, cache.rows)
    assert [captions.of(row) for row in rows] == [["0_0", "0_1"], ["1_0"], []]
    column = captions.cache.column("features/clip-vit-L")
    texts = captions.text[[captions.start[rows[0]], captions.start[rows[0]] + 1]]
    stored = torch.from_numpy(column.values("tokens", texts))
    assert_close(stored, mmdit["in.context"], rtol=1e-3, atol=1e-6)
    assert column.read("length", texts).tolist() == [11, 11]
    empty = repa_cache.open(config.cache.path).empty_context("clip-vit-L")
    assert_close(empty.tokens[0], mmdit["in.empty_context"], rtol=1e-3, atol=1e-6)
    assert find_all_faults(config.cache.path, 2) == []
    assert build(config.encode, CPU.device).counts.shards == 0


def test_a_model_is_trained_from_them(configured: Callable[..., Config], tmp_path: Path) -> None:
    for file in (tmp_path / "features" / "train").glob("2*"):
        file.unlink()
    config = configured(
        "train.model=MMDiT-XS/2",
        "train.text=clip-vit-L",
        "train.steps=2",
        "train.batch_size=2",
        "sample.labels=random",
    )
    build(config.encode, CPU.device)
    assert trained(config).step == 2
    # Prompts are encoded by the model that made the tokens, as far as they tell.
    clip = save_text_model(tmp_path / "clip", "clip", hidden_size=768)
    own = config.texts["clip-vit-L"].model_copy(update={"model": str(clip), "max_tokens": 11})

    def draw(settings: TextSettings) -> int:
        options = SampleOptions(prompts=("a red cup",))
        chosen = config.sample.model_copy(update={"images": 1, "steps": 2})
        texts = TextSource({"clip-vit-L": settings}, config.cache.path)
        return sample(chosen, options, config.train, config.decoder, CPU, texts).images

    assert draw(own) == 1
    with pytest.raises(SampleError, match="max_tokens: cache 11, configuration 12"):
        draw(own.model_copy(update={"max_tokens": 12}))


def test_tokens_that_were_taken_over_are_stale_where_they_are_to_be_made(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    build(configured().encode, CPU.device)
    clip = save_text_model(tmp_path / "clip", "clip")
    made = configured("texts.clip-vit-L.imported=false", f"texts.clip-vit-L.model={clip}")
    with pytest.raises(StaleCacheError, match="imported: cache true"):
        build(made.encode, CPU.device)


def test_what_does_not_belong_together_is_refused(
    configured: Callable[..., Config], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="only the source 'u-vit' brings tokens of captions"):
        tiny("texts.clip-vit-L.imported=true")
    config = configured()
    folder = tmp_path / "features" / "train"
    (folder / "1.npy").rename(folder / "7.npy")
    with pytest.raises(SourceError, match=r"number 1 has no features, and 1 more lack one"):
        build(config.encode, CPU.device)
    (folder / "7.npy").rename(folder / "1.npy")
    (folder.parent / "empty_context.npy").unlink()
    with pytest.raises(Exception, match=r"empty_context\.npy"):
        build(config.encode, CPU.device)


def test_files_of_other_names_are_left_out(images: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    packed = packing.u_vit(images, tmp_path / "data")
    packing.write_files(packed.path, {"more/3.png": b"", "0_0_0.npy": b"", "mean.npy": b""})
    source = packed.open()
    assert source.left_out.total == 3
    assert source.contexts is not None
    assert source.contexts.empty().shape == (5, 6)
