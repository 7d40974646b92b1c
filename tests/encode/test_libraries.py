"""Encoders of libraries other than timm, each added as one entry of the registry."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from patches import SPEC, Patches
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from cache.errors import StaleCacheError
from cache.metadata import read_group
from cache.reader import Cache
from pipeline.config import Config, ConfigError
from stages.encode.build import build
from stages.encode.building.columns import load_features_maker
from stages.encode.images.crop_batches import Crops
from stages.encode.measuring.foresight import count_images, foresee
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import (
    ENCODERS,
    LIBRARIES,
    EncoderError,
    EncoderSpec,
    Networks,
    library_of,
)
from stages.evaluate.evaluate import _alignment

CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save({"state_dict": Patches(12).state_dict()}, tmp_path / "patches.pth")
    return tmp_path / "patches.pth"


@pytest.fixture
def config(
    tiny: Callable[..., Config], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """The tiny configuration with an encoder that is a plain module, chosen by its name alone."""
    monkeypatch.setitem(ENCODERS, "patches", SPEC)
    return lambda *more: tiny(
        f"encoders.patches={{weights = '{weights}'}}", 'train.align.0.encoder="patches"', *more
    )


def test_an_entry_alone_adds_a_plain_module_with_a_published_file(
    config: Callable[..., Config], weights: Path
) -> None:
    encode = config().encode
    (foreseen,) = (
        one
        for one in foresee(encode, count_images(encode, None))
        if one.column.name == "features/patches"
    )
    build(encode, CPU)
    reader = Cache(encode.cache.path).column("features/patches", verify=True)
    assert foreseen.column.arrays == reader.column.arrays
    network = Patches(12)
    network.load_state_dict(torch.load(weights)["state_dict"])
    maker = load_features_maker(encode, "patches", CPU)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        prefix, tokens = network((images / 255 - 0.5) / 0.5)
    made = maker.network(Crops.of(images))
    torch.testing.assert_close(made["tokens"], tokens)
    torch.testing.assert_close(made["class_token"], prefix[:, 0])
    assert foreseen.flops == counter.get_total_flops() / 2


def test_a_recipe_names_a_library_that_is_not_timm(config: Callable[..., Config]) -> None:
    build(config().encode, CPU)
    path = config().cache.path / "features"
    assert read_group(path / "patches")["recipe"]["library"] == "torch"
    assert "library" not in read_group(path / "efficientnet-lite0")["recipe"]


def test_an_encoder_of_another_library_is_another_one_than_that_of_timm(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(config().encode, CPU)
    monkeypatch.setitem(LIBRARIES, "other", LIBRARIES["torch"])
    monkeypatch.setitem(ENCODERS, "patches", replace(SPEC, library="other"))
    with pytest.raises(StaleCacheError, match='library: cache "torch", configuration "other"'):
        build(config().encode, CPU)


def test_weights_of_a_plain_module_are_needed_and_whole(
    config: Callable[..., Config], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config()
    with pytest.raises(ConfigError, match=r"patches\.weights: required; patches are at example"):
        tiny("encoders.patches={}")
    path = tmp_path / "half.safetensors"
    save_file({"embed.weight": torch.zeros(12, 3, 8, 8)}, path)
    with pytest.raises(EncoderError, match=r"1 of 2 tensors .* not in it, embed\.bias among them"):
        FrozenEncoder(SPEC, 32, path, CPU)
    save_file({**Patches(11).state_dict()}, path)
    with pytest.raises(EncoderError, match=r"embed\.weight is \[11, 3, 8, 8\] there, expected"):
        FrozenEncoder(SPEC, 32, path, CPU)


def test_one_network_can_be_cached_under_several_names(tiny: Callable[..., Config]) -> None:
    finer = 'encoders.finer={model = "efficientnet-lite0", input_size = 128}'
    config = tiny(finer, "dataset.resolution=64", "encoders.efficientnet-lite0.input_size=128")
    build(config.encode, CPU)
    cache = Cache(config.cache.path)
    finer_tokens, tokens = (
        cache.column(f"features/{name}").read("tokens", range(5))
        for name in ("finer", "efficientnet-lite0")
    )
    assert finer_tokens.shape[1] == 64
    assert finer_tokens.tobytes() == tokens.tobytes()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('finer={model = "dinov2-vit-bb"}', "finer: unknown name 'dinov2-vit-bb'; did you mean"),
        ('"../x"={model = "dinov2-vit-b"}', r"'\.\./x' names a folder of the cache: letters"),
        ('"a/b"={model = "dinov2-vit-b"}', "'a/b' names a folder of the cache: letters"),
        ('x={library = "trnsformers"}', "library: unknown name 'trnsformers'; did you mean 'tr"),
        ('x={library = "transformers"}', "x: model: required, as transformers has none by"),
        ('x={library = "torch", model = "a:B"}', "models of torch go by their names in the reg"),
    ],
)
def test_sections_that_name_no_network_are_refused(
    section: str, message: str, tiny: Callable[..., Config]
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(f"encoders.{section}")


def test_encoders_that_judge_samples_have_names_of_the_configuration_or_of_the_registry(
    tiny: Callable[..., Config],
) -> None:
    finer = 'encoders.finer={model = "efficientnet-lite0", input_size = 64}'
    config = tiny(finer, 'evaluate.frechet_encoders=["finer"]')
    assert config.evaluate.frechet_encoders == ("finer",)
    with pytest.raises(ConfigError, match="frechet_encoders: unknown name 'dinov2'; did you"):
        tiny('evaluate.frechet_encoders=["dinov2"]')


def test_a_network_that_a_run_was_aligned_to_is_known_by_whatever_name(
    config: Callable[..., Config],
) -> None:
    encode = config('encoders.finer={model = "efficientnet-lite0"}').encode
    recipe = encode.spec("efficientnet-lite0").recipe(64)
    aligned = ["the model was aligned to this encoder"]
    assert _alignment(recipe, {"aligned_with": ["finer"]}, encode) == aligned
    assert _alignment(recipe, {"aligned_with": ["patches"]}, encode) == []
    (note,) = _alignment(recipe, {"aligned_with": ["gone"]}, encode)
    assert note == "whether the model was aligned to this encoder is not known"


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_has_all_that_stage_one_needs_of_it(library: str) -> None:
    networks = library_of(EncoderSpec("x", 1, 1, library=library))
    for name in vars(Networks):
        if not name.startswith("_"):
            assert callable(getattr(networks, name)), name
