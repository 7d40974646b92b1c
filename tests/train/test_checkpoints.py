"""Every published format of weights, against independent networks."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from published import State, run_vit, vit
from safetensors.torch import save_file
from torch import Tensor

from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import ENCODERS, EncoderError, EncoderSpec

CPU = torch.device("cpu")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def tiny(name: str, **arguments: Any) -> EncoderSpec:
    """An encoder of the registry, small."""
    spec = ENCODERS[name]
    own = {"embed_dim": published.WIDTH, "depth": 2, "num_heads": 2}
    return replace(spec, arguments={**own, **spec.arguments, **arguments})


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8, generator=generator)


def inputs(images: Tensor, side: int, statistics: tuple[tuple[float, ...], ...]) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return (F.interpolate(images / 255, side, mode="bicubic") - mean) / std


def moco_v3(state: State, path: Path) -> None:
    """As MoCo v3 saves: two encoders with projection heads, and the misnamed layers of ViT-L."""
    renamed = {
        "blocks.13.norm1.": "blocks.13.norm13.",
        "blocks.13.mlp.fc1.": "blocks.13.mlp.fc13.",
        "blocks.14.norm2.": "blocks.14.norm14.",
        "blocks.14.mlp.fc2.": "blocks.14.mlp.fc14.",
    }
    trained = {}
    for name, tensor in state.items():
        own = name
        for right, wrong in renamed.items():
            own = own.replace(right, wrong)
        trained[f"module.base_encoder.{own}"] = tensor
        trained[f"module.momentum_encoder.{own}"] = -tensor
    for name in ("base_encoder.head.0", "momentum_encoder.head.0", "predictor.0"):
        trained[f"module.{name}.weight"] = torch.ones(3, 3)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 300, "state_dict": trained, "optimizer": optimizer}, path)


def i_jepa(state: State, path: Path) -> None:
    parts = {"encoder": state, "target_encoder": {n: -t for n, t in state.items()}}
    prefixed = {part: {f"module.{n}": t for n, t in own.items()} for part, own in parts.items()}
    predictor = {"module.predictor_pos_embed": torch.ones(1, 256, 8)}
    torch.save({**prefixed, "predictor": predictor, "epoch": 300, "lr": 1e-3}, path)


def mae(state: State, path: Path) -> None:
    torch.save({"model": state, "args": argparse.Namespace(epochs=800)}, path)


@dataclass(frozen=True)
class Published:
    """A format, and what its tokens are: of an input of `side` px, after `prefixes` others."""

    name: str
    save: Callable[[Any, Path], None]
    state: Callable[[], State]
    side: int
    prefixes: int
    heads: int = 2
    has_final_norm: bool = True
    has_class_token: bool = True
    epsilon: float = 1e-6
    tanh: bool = False
    statistics: tuple[tuple[float, ...], ...] = IMAGENET


def dinov2(registers: int = 0) -> State:
    extra: dict[str, tuple[int, ...]] = {"mask_token": (1, published.WIDTH)}
    if registers:
        extra["register_tokens"] = (1, registers, published.WIDTH)
    return vit(14, 37**2, scales=True, extra=extra)


def dinov3() -> State:
    """Biases of keys are masked; the table of frequencies is a buffer."""
    extra = {"storage_tokens": (1, 4, published.WIDTH), "mask_token": (1, published.WIDTH)}
    state = vit(16, 0, scales=True, extra=extra | {"rope_embed.periods": (3,)})
    for block in range(2):
        bias = state[f"blocks.{block}.attn.qkv.bias"]
        mask = torch.ones_like(bias).index_fill(0, torch.arange(24, 48), 0)
        state[f"blocks.{block}.attn.qkv.bias"] = bias * mask
        state[f"blocks.{block}.attn.qkv.bias_mask"] = mask
    return state


FORMATS = [
    Published("dinov1-vit-b", torch.save, lambda: vit(16, 14**2), 256, 1),
    Published("dinov2-vit-b", torch.save, dinov2, 224, 1),
    Published("dinov2reg-vit-s", torch.save, lambda: dinov2(registers=4), 224, 5),
    Published("dinov3-vit-s", torch.save, dinov3, 256, 5, epsilon=1e-5),
    Published("mocov3-vit-s", moco_v3, lambda: vit(16, 14**2), 256, 1, heads=12),
    Published("mocov3-vit-b", moco_v3, lambda: vit(16, 14**2), 256, 1),
    Published("mocov3-vit-l", moco_v3, lambda: vit(16, 14**2, depth=16), 256, 1),
    Published("mae-vit-l", mae, lambda: vit(16, 14**2), 256, 1, has_final_norm=False),
    Published(
        "jepa-vit-h",
        i_jepa,
        lambda: vit(14, 16**2, class_token=False),
        224,
        0,
        has_class_token=False,
    ),
    *(
        Published(
            name,
            save_file,
            lambda: vit(16, 16**2, class_token=False),
            256,
            0,
            has_class_token=False,
            tanh=True,
            statistics=HALF,
        )
        for name in ("siglip-vit-l", "siglip2-vit-b")
    ),
]


@pytest.mark.parametrize("case", FORMATS, ids=lambda case: case.name)
def test_a_published_file_gives_the_tokens_that_its_authors_code_gives(
    case: Published, images: Tensor, tmp_path: Path
) -> None:
    path, state = tmp_path / "weights.safetensors", case.state()
    path = path if case.save is save_file else path.with_suffix(".pth")
    case.save(state, path)
    depth = sum(name.endswith("norm1.weight") for name in state)
    encoder = FrozenEncoder(tiny(case.name, depth=depth), case.side, path, CPU)
    expected = run_vit(
        state,
        inputs(images, case.side, case.statistics),
        case.heads,
        epsilon=case.epsilon,
        tanh=case.tanh,
    )
    if case.has_final_norm:
        expected = published.norm(expected, state, "norm", case.epsilon)
    features = encoder.features(images)
    assert features["tokens"].shape == (2, 256, published.WIDTH)
    torch.testing.assert_close(features["tokens"], expected[:, case.prefixes :])
    assert encoder.has_class_token == ("class_token" in features) == case.has_class_token
    if case.has_class_token:
        torch.testing.assert_close(features["class_token"], expected[:, 0])


def test_clip_s_archive_gives_the_tokens_before_its_last_norm(
    images: Tensor, tmp_path: Path
) -> None:
    clip = published.save_clip(tmp_path / "ViT-L-14.pt")
    encoder = FrozenEncoder(tiny("clip-vit-L"), 224, tmp_path / "ViT-L-14.pt", CPU)
    features = encoder.features(images)
    with torch.inference_mode():
        expected = clip(inputs(images, 224, CLIP))
    torch.testing.assert_close(features["tokens"], expected[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features["class_token"], expected[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "state", "side"),
    [("dinov2-vit-b", dinov2(), 448), ("mocov3-vit-b", vit(16, 14**2), 512)],
)
def test_images_of_512_px_have_four_times_the_tokens(
    name: str, state: State, side: int, images: Tensor, tmp_path: Path
) -> None:
    large = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.save(state, tmp_path / "w.pth")
    encoder = FrozenEncoder(tiny(name), ENCODERS[name].size_for(512), tmp_path / "w.pth", CPU)
    tokens = encoder.features(large)["tokens"]
    expected = run_vit(state, inputs(large, side, IMAGENET), heads=2)
    assert tokens.shape == (2, 32**2, published.WIDTH)
    torch.testing.assert_close(tokens, published.norm(expected, state, "norm", 1e-6)[:, 1:])


def test_weights_are_the_same_by_any_way_they_are_kept(tmp_path: Path) -> None:
    state = vit(16, 14**2)
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "b.pth")
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    moco_v3(state, tmp_path / "d.pth.tar")
    digests = {
        FrozenEncoder(tiny("mocov3-vit-b"), 256, path, CPU).weights_sha256
        for path in tmp_path.iterdir()
    }
    assert len(digests) == 1


class Pickled:
    """Stands for a class whose unpickling runs code."""


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_could_run_code_is_refused_with_what_to_do(
    is_zip: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    content = {"model": vit(16, 14**2), "args": Pickled()}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(EncoderError, match=r"is refused: .*\.Pickled\. If you trust .*save_file"):
        FrozenEncoder(tiny("mae-vit-l"), 256, path, CPU)


@pytest.mark.parametrize("kept", [0, 5, 400, 20_000])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors", "torchscript"])
def test_torn_files_are_named(kind: str, kept: int, tmp_path: Path) -> None:
    path, state = tmp_path / f"w.{kind}", vit(16, 14**2)
    if kind == "torchscript":
        published.save_clip(path)
    elif kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(EncoderError, match=rf"w\.{kind} cannot be read as weights: it is torn"):
        FrozenEncoder(tiny("dinov1-vit-b"), 256, path, CPU)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": {}, "teacher": {}}, "no tensors of a network, student, teacher instead"),
        (torch.ones(3), "it holds one Tensor"),
        ({"other": torch.ones(3)}, r"holds other weights: 30 of 30 tensors"),
        ({n: t for n, t in vit(16, 14**2).items() if n != "norm.bias"}, "1 of 30 .* norm.bias"),
        (vit(16, 14**2, depth=1), "12 of 30 .* blocks.1.norm1.weight"),
        (vit(8, 28**2), r"patch_embed.proj.weight is \[24, 3, 8, 8\] there"),
        ({**vit(16, 14**2), "norm.bias": torch.ones(9)}, r"norm.bias is \[9\] there, .* \[24\]"),
        ({**vit(16, 14**2), "pos_embed": torch.ones(4)}, "other weights than those of a Vision"),
    ],
)
def test_files_of_other_networks_are_refused_whole(
    content: Any, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=message):
        FrozenEncoder(tiny("dinov1-vit-b"), 256, tmp_path / "w.pth", CPU)


def test_a_missing_file_and_weights_that_are_on_no_hub_are_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"none\.pth cannot be read"):
        FrozenEncoder(tiny("dinov1-vit-b"), 256, tmp_path / "none.pth", CPU)
    with pytest.raises(EncoderError, match=r"on no hub; .* Set `weights` of the encoder"):
        FrozenEncoder(tiny("mocov3-vit-b"), 256, None, CPU)
