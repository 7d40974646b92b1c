import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import Config, ConfigError
from stages.encode.networks import timm_library
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import EncoderError, EncoderSpec, find_encoder
from stages.encode.networks.timm_index import timm_encoder
from stages.encode.networks.timm_library import create_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder, in which nothing is kept at first."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        timm_encoder.cache_clear()
        yield folder / "repa-cache"


@pytest.fixture(scope="module")
def crops() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("name", "stride", "size", "sizing", "has_class_token"),
    [
        ("vit_base_patch16_224.augreg_in21k", 16, 224, "built", True),
        ("vit_base_patch16_siglip_256.v2_webli", 16, 256, "built", False),
        ("deit_tiny_distilled_patch16_224", 16, 224, "built", True),
        ("convnext_base.fb_in22k", 32, 224, "any", False),
        ("swin_tiny_patch4_window7_224.ms_in1k", 32, 224, "built", False),
        ("tf_efficientnet_b4.ns_jft_in1k", 32, 380, "any", False),
        ("levit_128s.fb_dist_in1k", 56, 224, "native", False),
    ],
)
def test_a_model_of_timm_is_known_by_what_it_gives(
    name: str, stride: int, size: int, sizing: str, has_class_token: bool
) -> None:
    spec = find_encoder(name)
    assert (spec.model, spec.stride, spec.input_size) == (name, stride, size)
    assert (spec.sizing, spec.has_class_token) == (sizing, has_class_token)
    assert spec.size_for(256) == size


def test_statistics_are_those_of_the_weights() -> None:
    spec = find_encoder("vit_base_patch16_224.augreg_in21k")
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert find_encoder("vit_base_patch16_clip_224.openai").mean[0] == 0.48145466


@pytest.mark.parametrize(
    ("name", "arguments", "is_channels_last"),
    [
        ("test_resnet.r160_in1k", {}, False),
        (
            "swin_tiny_patch4_window7_224.ms_in1k",
            {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
            True,
        ),
    ],
)
def test_a_feature_map_becomes_a_token_for_every_place_row_by_row(
    name: str, arguments: dict[str, int], is_channels_last: bool, crops: Tensor, tmp_path: Path
) -> None:
    spec = replace(find_encoder(name), arguments=arguments)
    network = create_network(spec, 224).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = FrozenEncoder(spec, 224, tmp_path / "w.safetensors", CPU)
    with torch.inference_mode():
        features = network.forward_features(encoder._preprocess(crops / 255))
    grid = features if is_channels_last else features.permute(0, 2, 3, 1)
    tokens = encoder.features(crops)["tokens"]
    assert tokens.shape == (2, 49, grid.shape[-1])
    torch.testing.assert_close(tokens[:, 7 * 2 + 3], grid[:, 2, 3])


def test_a_vision_transformer_has_tokens_without_its_prefix(crops: Tensor, tmp_path: Path) -> None:
    spec = find_encoder("test_vit.r160_in1k")
    network = create_network(spec, 160).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    encoder = FrozenEncoder(spec, 256, tmp_path / "w.safetensors", CPU)
    features = encoder.features(crops)
    assert features["tokens"].shape == (2, 256, 64)
    assert features["class_token"].shape == (2, 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2-vit-bb", "did you mean 'dinov2-vit-b'?"),
        ("vit_base_patch16_224.augreg_in21", "did you mean 'vit_base_patch16_224.augreg_in21k'?"),
        ("zzz", "choose from dinov2-vit-s, .*, or a model of timm"),
        ("crossvit_9_240.in1k", "gives no square grid of features"),
        ("inception_v3.tv_in1k", "gives no square grid of features a whole number of px apart"),
    ],
)
def test_names_that_cannot_be_used_are_refused_with_the_nearest_one(
    name: str, message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        find_encoder(name)


def test_a_grid_that_does_not_fit_comes_with_the_size_that_does(
    tiny: Callable[..., Config],
) -> None:
    name = "vit_base_patch16_224.augreg_in21k"
    sections = f'encoders."{name}".storage=int8', f"train.align.0.encoder={name}"
    with pytest.raises(ConfigError, match=r"\d+ x \d+, those of SiT-XS/2 on 4 x 4; set .* = 64"):
        tiny(*sections, "dataset.resolution=32", f'encoders."{name}".input_size=96')
    config = tiny(*sections, f'encoders."{name}".input_size=64')
    assert config.encode.token_grid(name) == 4


def test_names_of_the_registry_are_known_without_loading_timm() -> None:
    program = (
        "import sys; from stages.encode.networks.registry import find_encoder; "
        "find_encoder('dinov2-vit-b'); print(sorted({'timm', 'torch'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed == "[]\n"


NAME = "test_vit.r160_in1k"


def asked_anew(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> EncoderSpec:
    """The encoder as a new process finds it; asked: given a line whenever timm is asked."""
    for question in ("model_names", "probe_model"):
        ask = getattr(timm_library, question)
        monkeypatch.setattr(
            timm_library,
            question,
            lambda *name, ask=ask, of=question: asked.append(of) or ask(*name),
        )
    timm_encoder.cache_clear()
    spec = find_encoder(NAME)
    monkeypatch.undo()
    return spec


@pytest.mark.parametrize("damage", [b"", b'{"published": [], "othe', b"\xff\xfe", b"[1]"])
def test_kept_answers_that_are_damaged_are_asked_for_again(
    kept: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    spec = find_encoder(NAME)
    asked: list[str] = []
    assert asked_anew(monkeypatch, asked) == spec
    assert asked == []
    (names,), (model,) = kept.glob("*/names.json"), kept.glob(f"*/*/{NAME}.json")
    before = names.read_bytes(), model.read_bytes()
    names.write_bytes(damage)
    model.write_bytes(damage)
    assert asked_anew(monkeypatch, asked) == spec
    assert asked == ["model_names", "probe_model"]
    assert (names.read_bytes(), model.read_bytes()) == before


@pytest.mark.parametrize("folder", ["a file", "relative", "nowhere"])
def test_without_a_folder_to_keep_answers_in_timm_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    spec = find_encoder(NAME)
    (tmp_path / "a file").write_text("")
    monkeypatch.chdir(tmp_path)
    places = {"a file": str(tmp_path / "a file"), "relative": "here", "nowhere": ""}
    monkeypatch.setenv("XDG_CACHE_HOME", places[folder])
    monkeypatch.setenv("HOME", str(tmp_path / "a file"))
    timm_encoder.cache_clear()
    assert find_encoder(NAME) == spec
    assert list(tmp_path.iterdir()) == [tmp_path / "a file"]
