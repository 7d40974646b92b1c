"""Encoders of transformers, held against its own models and image processors."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import stages.vision  # noqa: F401 - before transformers, as everywhere
from cache.metadata import read_group
from cache.reader import Cache
from pipeline.config import Config, ConfigError
from pipeline.requirements import missing_packages
from stages.encode.build import build
from stages.encode.building.recipes import declared_recipes
from stages.encode.measuring.foresight import count_images, foresee
from stages.encode.networks import transformers_index
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import EncoderError, EncoderSpec, find_encoder
from stages.encode.networks.transformers_index import ARCHITECTURES

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

CPU = torch.device("cpu")
TINY = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
# Tokens in front of the patches.
PREFIXES = {
    "clip_vision_model": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 5,
    "ijepa": 0,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_mae": 1,
    "vit_msn": 1,
}
REGISTERS = {"dinov2_with_registers": 4, "dinov3_vit": 4}
WHOLE = {"height": 32, "width": 32}


def tiny_model(kind: str) -> Any:
    more = {"num_register_tokens": REGISTERS[kind]} if kind in REGISTERS else {}
    config = transformers.AutoConfig.for_model(kind, **TINY, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config).eval()
        for parameter in model.parameters():
            # Tokens that begin as zeros would not be told apart.
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def save(folder: Path, kind: str = "dinov2", processor: Any = None) -> Path:
    tiny_model(kind).save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size=WHOLE)).save_pretrained(folder)
    return folder


def published(folder: Path, side: int, weights: Path | None = None) -> FrozenEncoder:
    return FrozenEncoder(find_encoder(str(folder), "transformers"), side, weights, CPU)


@pytest.fixture(scope="module")
def crops() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("side", [32, 64])
def test_tokens_are_the_last_hidden_state_without_its_prefix(
    kind: str, side: int, crops: Tensor, tmp_path: Path
) -> None:
    encoder = published(save(tmp_path, kind), side)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    arguments: dict[str, Any] = {}
    if kind == "vit_mae":
        config.mask_ratio = 0.0
        arguments["noise"] = torch.arange(side**2 // 64).float().expand(2, -1)
    model = transformers.AutoModel.from_pretrained(tmp_path, config=config).eval()
    if side != 32 and kind not in {"dinov2", "dinov2_with_registers", "dinov3_vit"}:
        arguments["interpolate_pos_encoding"] = True
    with torch.inference_mode():
        hidden = model(encoder._preprocess(crops / 255), **arguments).last_hidden_state
    features, prefixes = encoder.features(crops), PREFIXES[kind]
    assert hidden.shape[1] == prefixes + side**2 // 64
    assert torch.equal(features["tokens"], hidden[:, prefixes:])
    assert ("class_token" in features) == (prefixes > 0)
    if prefixes:
        assert torch.equal(features["class_token"], hidden[:, 0])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_a_configuration_leaves_out_is_as_in_transformers(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind)
    save(tmp_path, kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    spec = find_encoder(str(tmp_path), "transformers")
    assert spec.stride == config.patch_size
    assert spec.model == kind


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_of_images_and_texts_the_part_that_sees_images_is_taken(
    kind: str, crops: Tensor, tmp_path: Path
) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, vision_config=TINY, text_config=text)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size=WHOLE).save_pretrained(tmp_path)
    encoder = published(tmp_path, 32)
    with torch.inference_mode():
        hidden = model.vision_model(encoder._preprocess(crops / 255)).last_hidden_state
    assert torch.equal(encoder.features(crops)["tokens"], hidden[:, int(kind == "clip") :])


@pytest.mark.parametrize(
    "processor",
    [
        "ViTImageProcessor",
        "SiglipImageProcessor",
        "CLIPImageProcessor",
        "BitImageProcessor",
        "DINOv3ViTImageProcessor",
    ],
)
@pytest.mark.parametrize("side", [32, 64])
def test_images_enter_as_through_the_model_s_own_processor_but_whole(
    processor: str, side: int, tmp_path: Path
) -> None:
    own = getattr(transformers, processor)()
    spec = find_encoder(str(save(tmp_path, processor=own)), "transformers")
    assert (spec.input_size, spec.mean) == (224, tuple(own.image_mean))
    # Edges, at which bicubic resizing makes colours beyond white and black.
    pixels = np.random.default_rng(0).integers(0, 2, (6, 6, 3), dtype=np.uint8) * 255
    picture = Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST)
    size = {"height": side, "width": side}
    expected = own(picture, size=size, do_center_crop=False, return_tensors="pt")["pixel_values"]
    crop = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    inputs = published(tmp_path, side)._preprocess(crop / 255)
    # Processors round to whole levels of colour, after resizing along rows and along columns.
    level = 1 / 255 / min(spec.std)
    assert inputs.shape == expected.shape
    assert (inputs - expected).abs().max() < 1.01 * level


def test_the_input_size_is_that_after_the_processor_s_own_crop(tmp_path: Path) -> None:
    own = transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    assert find_encoder(str(save(tmp_path, processor=own)), "transformers").input_size == 224


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": None}, "how images enter cannot be read from its preprocessor_config"),
        ({"resample": 1}, r"how images enter cannot be read .* \(KeyError\(1\)\)"),
        ({"rescale_factor": 1 / 127.5}, r"how images enter .*rescale_factor 0\.0078"),
        ({"size": {"height": 32, "width": 64}}, r"how images enter .*sides \[32, 64\]"),
    ],
)
def test_preprocessing_that_cannot_be_had_exactly_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save(tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EncoderError, match=message):
        find_encoder(str(tmp_path), "transformers")


def test_weights_are_all_there_or_refused_and_may_lie_in_a_file_or_in_several(
    crops: Tensor, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", "vit")
    encoder = published(folder, 32)
    file = shutil.move(folder / "model.safetensors", tmp_path / "w.safetensors")
    again = published(folder, 32, Path(file))
    assert again.weights_sha256 == encoder.weights_sha256
    assert torch.equal(again.features(crops)["tokens"], encoder.features(crops)["tokens"])
    tiny_model("vit").save_pretrained(folder, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    assert published(folder, 32).weights_sha256 == encoder.weights_sha256
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layernorm.bias"))
    whole = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(EncoderError, match=r"1 of .* tensors of the encoder are not in it"):
        published(folder, 32, Path(file))
    save_file({**tensors, name: whole + 1}, file)
    assert published(folder, 32, Path(file)).weights_sha256 != encoder.weights_sha256
    save_file({**tensors, name: whole[1:].clone()}, file)
    with pytest.raises(EncoderError, match="cannot be loaded as a vit"):
        published(folder, 32, Path(file))


def test_a_pooler_that_makes_no_token_is_neither_needed_nor_part_of_the_identity(
    tmp_path: Path,
) -> None:
    file = save(tmp_path, "vit") / "model.safetensors"
    before = published(tmp_path, 32).weights_sha256
    tensors = {n: t for n, t in load_file(file).items() if not n.startswith("pooler.")}
    assert len(tensors) < len(load_file(file))
    save_file(tensors, file, {"format": "pt"})
    assert published(tmp_path, 32).weights_sha256 == before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "dino", "dinov3_vit")


def section(model: str | Path, *more: str) -> tuple[str, ...]:
    settings = f'library = "transformers", model = "{model}", input_size = 32'
    return (f"encoders.dino={{{settings}}}", 'train.align.0.encoder="dino"', *more)


def test_a_folder_beside_the_configuration_becomes_a_column_as_foreseen(
    model: Path, tiny: Callable[..., Config]
) -> None:
    encode = tiny(*section("./dino")).encode
    (foreseen,) = (
        one
        for one in foresee(encode, count_images(encode, None))
        if one.column.name == "features/dino"
    )
    build(encode, CPU)
    column = Cache(encode.cache.path).column("features/dino", verify=True).column
    assert foreseen.column.arrays == column.arrays
    assert [array.name for array in column.arrays] == ["tokens", "class_token", "valid"]
    assert (column.recipe["library"], column.recipe["model"]) == ("transformers", "dinov3_vit")
    provenance = read_group(encode.cache.path / "features" / "dino")["provenance"]
    assert provenance["transformers"] == transformers.__version__
    assert column.recipe["resize"] == "bilinear, antialias, clamped"
    model.rename(model.with_name("moved"))
    moved = tiny(*section("./moved")).encode
    assert build(moved, CPU).counts.shards == 0


def test_training_needs_none_of_an_encoder_s_files(
    model: Path, tiny: Callable[..., Config]
) -> None:
    config = tiny(*section("./dino"))
    build(config.encode, CPU)
    shutil.rmtree(model)
    with pytest.raises(ConfigError, match=r"encoders\.x: there is no folder .*/dino"):
        tiny('encoders.x={library = "transformers", model = "./dino"}')
    recipe = declared_recipes(config.encode)["features/dino"]
    assert recipe.keys() >= {"library", "storage", "compute"}
    assert "model" not in recipe
    assert list(missing_packages("train", config)) == []


def test_a_kind_of_network_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "dinov2_with_register"}')
    with pytest.raises(EncoderError, match=r"kind 'dinov2_with_register', .* did you mean 'd"):
        find_encoder(str(tmp_path), "transformers")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EncoderError, match=r"config\.json cannot be read: expected an object"):
        find_encoder(str(tmp_path), "transformers")
    (tmp_path / "config.json").unlink()
    with pytest.raises(EncoderError, match=r"has no config\.json"):
        find_encoder(str(tmp_path), "transformers")


def test_without_the_package_there_is_one_error_before_anything_runs(
    model: Path, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(*section(model))
    monkeypatch.setattr("pipeline.requirements.is_installed", lambda name: name != "transformers")
    (line,) = missing_packages("build", config)
    assert line == (
        "encoders.dino: needs transformers, which is not installed: "
        "pip install 'repa-cache[transformers]'"
    )
    monkeypatch.setattr("stages.encode.networks.transformers_library.is_installed", lambda _: False)
    with pytest.raises(EncoderError, match="An encoder of transformers needs transformers, which"):
        published(model, 32)


def test_configurations_are_read_without_importing_transformers_or_torch(model: Path) -> None:
    program = (
        "import sys; from stages.encode.networks.registry import find_encoder; "
        f"find_encoder({str(model)!r}, 'transformers'); "
        "print(sorted({'transformers', 'torch'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed == "[]\n"


def test_a_model_in_the_hub_s_cache_is_used_and_one_that_is_nowhere_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    transformers_index._fetched.cache_clear()
    with pytest.raises(EncoderError, match=r"cannot load org/dino: .*HF_HUB_OFFLINE is set"):
        find_encoder("org/dino", "transformers")
    folder = tmp_path / "hub" / "models--org--dino"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    shutil.copytree(model, folder / "snapshots" / "1")
    transformers_index._fetched.cache_clear()
    spec: EncoderSpec = find_encoder("org/dino", "transformers")
    assert (spec.stride, spec.location) == (8, "org/dino")
    hub = FrozenEncoder(spec, 32, None, CPU)
    assert hub.weights_sha256 == published(model, 32).weights_sha256
    transformers_index._fetched.cache_clear()
