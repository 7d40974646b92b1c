"""Models and precisions of their own on a GPU: no step waits, and a graph makes the same steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import COMPILING
from on_gpu import STEPS, assert_never_waits, assert_recorded_as_made
from runs import CPU
from spaces import build_pixels
from texts import TEXTS, WITH_TEXT, save_text_model, write_beside
from tiny import TINY, write_images

from pipeline.config import Config, load_config
from stages.encode.build import build

pytestmark = [
    pytest.mark.gpu,
    # So torch says of the mode itself, whenever it is switched on.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    *COMPILING,
]

LATENTS = {
    "layers": (
        *("train.norm=rms-affine", "train.mlp=swiglu", "train.rotary=true"),
        *("train.value_residual=true", "train.qk_norm=true"),
    ),
    "float8": ("train.precision=float8",),
    "tf32": ("train.precision=tf32", "train.compute.recompute_activations=true"),
}
DROPPED = ("train.pixels.dropout=0.4", "train.second_ema_decay=0.9")
PIXELS = {
    "plain": ("train.second_ema_decay=0.9",),
    "dropout": DROPPED,
    "dropout-recomputed": (*DROPPED, "train.compute.recompute_activations=true"),
    "adapter": ("train.align=[{kind='pixel-repa', encoder='efficientnet-lite0', depth=2}]",),
}
PLAIN = "train.compute.compile=false"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pixels(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module", params=["clip", "bert"])
def captioned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    write_images(folder / "images")
    write_beside(folder / "images")
    text = save_text_model(folder / "text", request.param)
    document = TINY.format(vae=tiny_vae) + TEXTS.format(folder=text)
    (folder / "pipeline.toml").write_text(document)
    build(load_config(folder / "pipeline.toml").encode, CPU.device)
    return folder / "pipeline.toml"


def configured(path: Path, folder: Path, *settings: str) -> Callable[..., Config]:
    own = (f"train.run={folder / 'run'}", *STEPS, *settings)
    return lambda *more: load_config(path, [*own, *more])


def assert_right(make: Callable[..., Config], folder: Path, patch: pytest.MonkeyPatch) -> None:
    assert_recorded_as_made(make, folder)
    assert_never_waits(make(PLAIN, f"train.run={folder / 'watched'}"), patch)


@pytest.mark.parametrize("settings", LATENTS.values(), ids=list(LATENTS))
def test_layers_and_precisions(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    make = configured(built / "pipeline.toml", tmp_path, *settings)
    assert_right(make, tmp_path, monkeypatch)


@pytest.mark.parametrize("settings", PIXELS.values(), ids=list(PIXELS))
def test_pixels(
    pixels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    assert_right(configured(pixels, tmp_path, *settings), tmp_path, monkeypatch)


def test_captions(captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_right(configured(captioned, tmp_path, *WITH_TEXT), tmp_path, monkeypatch)
