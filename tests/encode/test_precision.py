from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from stages.encode.network_settings import Precision
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.frozen_networks import OVERFLOWN, compute, noting_overflow
from stages.encode.networks.registry import ENCODERS
from stages.encode.networks.timm_library import create_network
from stages.float32 import float32_products

CPU = torch.device("cpu")


class Loud(nn.Module):
    """Two layers that a bright image drives past 65504 in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 3, bias=False))
        self.seen: list[int] = []
        with torch.no_grad():
            self.layers[0].weight.fill_(100.0)
            self.layers[1].weight.copy_(torch.arange(24).reshape(3, 8) / 24)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.append(len(images))
        hidden = self.layers[0](images)
        return {"result": self.layers[1](hidden), "type": hidden.new_zeros(len(images), 1)}


@pytest.fixture
def loud() -> Loud:
    return Loud().requires_grad_(False)


def test_float16_computes_again_in_float32_only_the_images_that_overflow(loud: Loud) -> None:
    images = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    images[[1, 4]] = images[[1, 4]].abs() + 1000
    exact = compute(loud, images, "float32")["result"]
    half = compute(loud, images, "float16")["result"]
    assert loud.seen == [5, 5, 2]
    assert half.dtype == torch.float32
    assert torch.equal(half[[1, 4]], exact[[1, 4]])
    error = (half - exact)[[0, 2, 3]].norm() / exact[[0, 2, 3]].norm()
    assert 0 < error < 5e-3


def test_a_batch_without_overflow_is_computed_once(loud: Loud) -> None:
    compute(loud, torch.ones(3, 4), "float16")
    assert loud.seen == [3]


def test_precision_is_half_and_never_bfloat16() -> None:
    seen: dict[str, torch.dtype] = {}

    def network(inputs: Tensor) -> dict[str, Tensor]:
        seen["product"] = (inputs @ inputs.mT).dtype
        seen["input"] = inputs.dtype
        return {"result": inputs}

    compute(network, torch.ones(1, 2, 2), "float16")
    assert seen == {"product": torch.float16, "input": torch.float32}
    compute(network, torch.ones(1, 2, 2), "float32")
    assert seen["product"] == torch.float32


def tf32() -> tuple[bool, bool]:
    """Whether matrix products and convolutions may use it."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[False, True])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    default = tf32()
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param, True
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = default


@pytest.mark.parametrize("precision", get_args(Precision))
def test_tf32_is_on_inside_a_network_that_asks_for_it_and_as_it_was_after_it(
    before: tuple[bool, bool], precision: Precision
) -> None:
    assert tf32() == before
    seen = []
    compute(lambda inputs: seen.append(tf32()) or {"result": inputs}, torch.ones(1, 1), precision)
    assert seen == [(precision == "tf32",) * 2]
    with pytest.raises(ZeroDivisionError), float32_products(tf32=True):
        raise ZeroDivisionError
    assert tf32() == before


def test_on_a_cpu_tf32_is_float32(tiny_vae: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exact, less = (
        Autoencoder(str(tiny_vae), CPU, precision).encode(images)["moments"]
        for precision in ("float32", "tf32")
    )
    assert torch.equal(exact, less)


def test_overflow_is_noted_where_nobody_may_wait(loud: Loud) -> None:
    images = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    images[[1, 4]] = images[[1, 4]].abs() + 1000
    with noting_overflow():
        noted = compute(loud, images, "float16")
    assert noted[OVERFLOWN].tolist() == [False, True, False, False, True]
    assert loud.seen == [5]
    settled = compute(loud, images, "float16")
    assert settled.keys() == noted.keys() - {OVERFLOWN}
    assert torch.equal(noted["result"][::2][:2], settled["result"][::2][:2])


def test_an_encoder_that_overflows_gives_its_float32_tokens(tmp_path: Path) -> None:
    arguments = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    spec = replace(ENCODERS["dinov1-vit-b"], arguments=arguments)
    state = {n: torch.randn(t.shape) for n, t in create_network(spec, 32).state_dict().items()}
    state["blocks.0.mlp.fc1.weight"] *= 300
    state["blocks.0.mlp.fc2.weight"] *= 300
    torch.save(state, tmp_path / "w.pth")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exact, half = (
        FrozenEncoder(spec, 32, tmp_path / "w.pth", CPU, precision).features(images)
        for precision in ("float32", "float16")
    )
    for name, tensor in exact.items():
        torch.testing.assert_close(half[name], tensor)


def test_half_precision_moments_are_close_to_those_of_float32(tiny_vae: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = Autoencoder(str(tiny_vae), CPU).encode(images)["moments"]
    half = Autoencoder(str(tiny_vae), CPU, "float16").encode(images)["moments"]
    assert half.dtype == torch.float32
    assert 0 < ((half - exact).norm() / exact.norm()).item() < 5e-3
