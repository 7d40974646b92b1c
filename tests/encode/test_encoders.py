from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config import Config, ConfigError
from stages.encode.building.recipes import declared_recipes
from stages.encode.images.sources.samples import open_photograph
from stages.encode.network_settings import Precision
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.frozen_networks import weights_sha256
from stages.encode.networks.registry import ENCODERS, EncoderError, EncoderSpec
from stages.encode.networks.timm_library import create_network
from stages.vision import timm

CPU = torch.device("cpu")
NATIVE = {"pe-spatial-b16": 512, "pe-core-l14": 336}


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_efficientnet_has_the_tokens_of_its_stage_of_stride_16(photographs: Tensor) -> None:
    encoder = FrozenEncoder(ENCODERS["efficientnet-lite0"], 128, None, CPU)
    tokens = encoder.features(photographs)
    assert tokens.keys() == {"tokens"}
    inputs = F.interpolate((photographs / 255 - 0.5) / 0.5, 128, mode="bicubic")
    stages = encoder._model.forward_intermediates(inputs, intermediates_only=True)
    assert stages[3].shape == (2, 112, 8, 8)
    torch.testing.assert_close(tokens["tokens"], stages[3].flatten(2).mT)


def test_efficientnet_has_its_real_weights() -> None:
    photograph = open_photograph("chelsea", 224).crop((40, 0, 264, 224))
    pixels = torch.tensor(list(photograph.get_flattened_data())).reshape(224, 224, 3)
    encoder = FrozenEncoder(ENCODERS["efficientnet-lite0"], 224, None, CPU)
    classes = encoder._model((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5).topk(5).indices
    assert set(classes[0].tolist()) & {281, 282, 285}, "ImageNet's tabby, tiger and Egyptian cats"


def tiny_encoder(name: str, path: Path, input_size: int) -> FrozenEncoder:
    """An encoder of the registry, small, with random weights."""
    arguments = {"embed_dim": 24, "depth": 1, "num_heads": 2, **ENCODERS[name].arguments}
    spec = replace(ENCODERS[name], arguments=arguments)
    torch.save(create_network(spec, input_size).state_dict(), path)
    return FrozenEncoder(spec, input_size, path, CPU)


@pytest.mark.parametrize(
    ("name", "is_normalised_first"), [("dinov2-vit-b", True), ("clip-vit-L", False)]
)
def test_images_are_resized_as_floats_without_antialiasing_in_the_published_order(
    name: str, is_normalised_first: bool, photographs: Tensor, tmp_path: Path
) -> None:
    encoder, spec = tiny_encoder(name, tmp_path / "w.pth", 42), ENCODERS[name]
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))

    def resized(images: Tensor, antialias: bool = False) -> Tensor:
        return F.interpolate(images, 42, mode="bicubic", antialias=antialias)

    images = photographs / 255
    first, last = resized((images - mean) / std), (resized(images) - mean) / std
    right, wrong = (first, last) if is_normalised_first else (last, first)
    inputs = encoder._preprocess(images)
    assert torch.equal(inputs, right)
    assert not torch.equal(inputs, wrong)
    assert (inputs - resized((images - mean) / std, antialias=True)).norm() > 0.1 * inputs.norm()


def test_the_frechet_distance_of_edm2_sees_bytes_resized_with_antialiasing(
    photographs: Tensor, tmp_path: Path
) -> None:
    name = "dinov2-vit-l-edm2"
    encoder = tiny_encoder(name, tmp_path / "w.pth", 42)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (ENCODERS[name].mean, ENCODERS[name].std)
    )
    resized = F.interpolate(photographs.float(), 42, mode="bicubic", antialias=True)
    expected = (resized / 255 - mean) / std
    torch.testing.assert_close(encoder._preprocess(photographs / 255), expected)
    assert "class_token" in encoder.features(photographs)
    recipe = ENCODERS[name].recipe(224)
    assert recipe["resize"] == "bicubic, antialias"
    assert recipe["model"] == ENCODERS["dinov2-vit-l"].recipe(224)["model"]


def test_every_encoder_is_a_timm_model_with_the_statistics_of_its_weights() -> None:
    for name, spec in ENCODERS.items():
        config = timm.models.get_pretrained_cfg(spec.model, allow_unregistered=False)
        if spec.unpublished is None:
            assert config.has_weights, name
            assert (spec.mean, spec.std) == (config.mean, config.std), name


def test_every_encoder_s_grid_is_that_of_latents_unless_it_has_one_size_only() -> None:
    for name, spec in ENCODERS.items():
        for resolution in (256, 512):
            size = spec.size_for(resolution)
            assert spec.size_problem(size) is None, name
            if name in NATIVE:
                assert size == NATIVE[name]
            else:
                assert size // spec.stride == resolution // 16, name


def test_a_class_token_and_the_precision_are_part_of_the_recipe(
    tiny: Callable[..., Config],
) -> None:
    assert ENCODERS["dinov2-vit-b"].recipe(224)["class_token"] is True
    assert ENCODERS["jepa-vit-h"].recipe(224)["class_token"] is False
    assert {own["compute"] for own in declared_recipes(tiny().encode).values()} == {"float32"}
    for precision in get_args(Precision):
        own = f"encoders.efficientnet-lite0.precision={precision}", f"latents.precision={precision}"
        recipes = declared_recipes(tiny(*own).encode)
        assert {recipe["compute"] for recipe in recipes.values()} == {precision}


@pytest.mark.parametrize("side", [64, 96])
def test_images_enter_convolutions_in_the_layout_of_tensor_cores(side: int) -> None:
    encoder = FrozenEncoder(ENCODERS["efficientnet-lite0"], side, None, CPU)
    seen = []

    def look(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in encoder._model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    encoder.features(torch.zeros(2, 64, 64, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
    assert len(seen) > 30
    assert all(seen)


def test_an_encoder_of_one_size_refuses_others() -> None:
    with pytest.raises(EncoderError, match="input_size: it works at 336 px alone, got 224"):
        FrozenEncoder(ENCODERS["pe-core-l14"], 224, None, CPU)
    with pytest.raises(EncoderError, match="225 is no multiple of its patches of 14 px"):
        FrozenEncoder(ENCODERS["dinov2-vit-b"], 225, None, CPU)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("pe-core-l14", "storage=int8", "24 x 24, .* on 4 x 4; it works at 336 px alone: choose"),
        ("pe-core-l14", "input_size=56", r"input_size: it works at 336 px alone, got 56"),
        ("mocov3-vit-s", "storage=int8", "weights: required; MoCo v3 is on no hub; get it from"),
        ("dinov2-vit-b", "precision=bfloat16", "precision: input should be 'float32', 'tf32' or"),
    ],
)
def test_an_encoder_that_cannot_work_is_refused_before_anything_runs(
    tiny: Callable[..., Config], name: str, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(f"encoders.{name}.{setting}", f"train.align.0.encoder={name}")


def test_a_digest_of_weights_changes_with_any_of_them() -> None:
    model = torch.nn.Linear(3, 3)
    before = weights_sha256(model)
    assert weights_sha256(model) == before
    with torch.no_grad():
        model.bias[2] += 1e-6
    assert weights_sha256(model) != before


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, dict[str, Tensor]], None]:
    """Puts files where the hub's client keeps what it has downloaded; nothing else is there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def publish(model: str, tensors: dict[str, Tensor]) -> None:
        folder = tmp_path / f"models--timm--{model}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("1")
        (folder / "snapshots" / "1").mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "snapshots" / "1" / "model.safetensors")

    return publish


def test_weights_of_the_hub_are_those_of_the_file_and_never_half_of_them(
    hub: Callable[[str, dict[str, Tensor]], None], tmp_path: Path
) -> None:
    model = "vit_large_patch14_clip_quickgelu_224.openai"
    spec = EncoderSpec(model, 14, 224, arguments={"embed_dim": 24, "depth": 1, "num_heads": 2})
    with pytest.raises(
        EncoderError, match=rf"Cannot load {model} from timm's hub: .* no network, set"
    ):
        FrozenEncoder(spec, 224, None, CPU)
    tensors = create_network(spec, 224, num_classes=768).state_dict()
    hub(model.replace("_quickgelu", ""), tensors)
    save_file(tensors, tmp_path / "w.safetensors")
    file = FrozenEncoder(spec, 224, tmp_path / "w.safetensors", CPU)
    assert FrozenEncoder(spec, 224, None, CPU).weights_sha256 == file.weights_sha256
    hub(model.replace("_quickgelu", ""), {n: t for n, t in tensors.items() if n != "norm.bias"})
    with pytest.raises(EncoderError, match=r"norm\.bias"):
        FrozenEncoder(spec, 224, None, CPU)


# Features and tokens in front of the patches, of every encoder at its full size.
DIMENSIONS = {
    **dict.fromkeys(["dinov2-vit-s", "dinov2reg-vit-s", "dinov3-vit-s", "mocov3-vit-s"], 384),
    **dict.fromkeys(["dinov2-vit-b", "dinov2reg-vit-b", "dinov3-vit-b", "mocov3-vit-b"], 768),
    **dict.fromkeys(["dinov2-vit-l", "dinov2reg-vit-l", "dinov3-vit-l", "mocov3-vit-l"], 1024),
    **dict.fromkeys(["dinov2-vit-g", "dinov2reg-vit-g", "siglip2-vit-g"], 1536),
    **dict.fromkeys(["dinov1-vit-b", "siglip2-vit-b", "pe-spatial-b16"], 768),
    **dict.fromkeys(["clip-vit-L", "mae-vit-l", "siglip-vit-l", "siglip2-vit-l"], 1024),
    "dinov2-vit-l-edm2": 1024,
    **dict.fromkeys(["aimv2-vit-l", "pe-core-l14", "eva02-clip-l"], 1024),
    **dict.fromkeys(["dinov3-vit-h+", "jepa-vit-h"], 1280),
    "siglip2-vit-so400m": 1152,
    "efficientnet-lite0": 112,
}
PREFIXES = {
    **{name: 1 for name in ENCODERS if name.startswith(("dinov1", "dinov2-", "mocov3", "pe-"))},
    **{name: 5 for name in ENCODERS if name.startswith(("dinov2reg", "dinov3"))},
    **dict.fromkeys(["clip-vit-L", "mae-vit-l", "eva02-clip-l"], 1),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_at_its_full_size_has_its_grid_features_and_class_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ENCODERS[name]
    monkeypatch.setattr(
        "stages.encode.networks.timm_library.load_network",
        lambda spec, size, _: create_network(spec, size),
    )
    encoder = FrozenEncoder(spec, spec.size_for(256), None, CPU)
    images = torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8)
    features = encoder.features(images)
    side = NATIVE.get(name, spec.stride * 16) // spec.stride
    assert features["tokens"].shape == (1, side**2, DIMENSIONS[name])
    assert all(tensor.isfinite().all() for tensor in features.values())
    assert getattr(encoder._model, "num_prefix_tokens", 0) == PREFIXES.get(name, 0)
    assert ("class_token" in features) == (name in PREFIXES)
    if name in PREFIXES:
        assert features["class_token"].shape == (1, DIMENSIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in NATIVE])
def test_every_encoder_can_be_built_for_images_of_512_px(name: str) -> None:
    spec = ENCODERS[name]
    with torch.device("meta"):
        network = create_network(spec, spec.size_for(512)).eval()
        inputs = torch.empty(1, 3, spec.size_for(512), spec.size_for(512))
    if name != "efficientnet-lite0":
        assert network.forward_features(inputs).shape[1] == 32**2 + PREFIXES.get(name, 0)
