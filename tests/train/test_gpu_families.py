"""Models and precisions of their own on a GPU: no step waits, and a graph makes the same steps."""

from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import COMPILING
from families import LATENTS, PIXELS, build_captioned
from on_gpu import STEPS, assert_never_waits, assert_recorded_as_made
from spaces import build_pixels
from texts import WITH_TEXT

from pipeline.config import Config, load_config

pytestmark = [
    pytest.mark.gpu,
    # So torch says of the mode itself, whenever it is switched on.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    *COMPILING,
]

PLAIN = "train.compute.compile=false"


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pixels(tmp_path_factory.mktemp("pixels"))


@pytest.fixture(scope="module", params=["clip", "bert"])
def captioned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path
) -> Path:
    return build_captioned(tmp_path_factory.mktemp(request.param), tiny_vae, request.param)


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
