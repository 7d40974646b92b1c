"""What tests share: golden tensors, real JPEG files, and a tiny but real pipeline."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
from places import GOLDEN
from safetensors import safe_open
from tiny import COMPONENTS, TINY, write_images
from torch import Tensor

from cache.stores.places import StorePath
from pipeline.config import Config, load_config
from stages.placement import Placement

# Tests run side by side, a core each; and last bits depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Processes are killed here, never the machine: nothing has to have reached the disk.
os.fsync = lambda fd: None  # noqa: ARG005
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any-speed", deadline=None)
hypothesis.settings.load_profile("any-speed")


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Have a test draw the same random numbers whenever it runs."""
    torch.manual_seed(0)


@dataclass(frozen=True)
class Golden:
    """A file of golden tensors; a missing tensor is a failure."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name begins with a prefix, by the rest of their name."""
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }
        assert found, prefix
        return found


def read_golden(name: str) -> Golden:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return Golden({key: file.get_tensor(key) for key in file.keys()}, file.metadata())  # noqa: SIM118


@pytest.fixture(scope="session")
def sit_repa() -> Golden:
    return read_golden("sit_repa")


@pytest.fixture(scope="session")
def sit_official() -> Golden:
    return read_golden("sit_official")


@pytest.fixture(scope="session")
def dit() -> Golden:
    return read_golden("dit")


@pytest.fixture(scope="session")
def vavae() -> Golden:
    return read_golden("vavae")


@pytest.fixture(scope="session")
def jit() -> Golden:
    return read_golden("jit")


@pytest.fixture(scope="session")
def methods() -> Golden:
    return read_golden("methods")


@pytest.fixture(scope="session")
def mmdit() -> Golden:
    return read_golden("mmdit")


@pytest.fixture(scope="session")
def crops() -> Golden:
    return read_golden("center_crop_adm")


@pytest.fixture(scope="session")
def square_crops() -> Golden:
    return read_golden("center_crop_uvit")


@pytest.fixture(scope="session")
def official() -> Callable[[str], dict[str, object]]:
    return lambda name: json.loads((GOLDEN / f"official_{name}.json").read_text())


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real AutoencoderKL with random weights: 4 px per latent, 4 latent channels."""
    from stages.vision import AutoencoderKL

    folder = tmp_path_factory.mktemp("vae") / "tiny-vae"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=0.5,
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A file with random weights of Inception, and its sha256."""
    from inception import save_random_inception

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    return path, save_random_inception(path)


@pytest.fixture
def inception_weights(random_inception: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """That file, which passes for the published one."""
    monkeypatch.setattr("stages.evaluate.inception.SHA256_PREFIX", random_inception[1][:8])
    return random_inception[0]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def tiny(images: Path, tiny_vae: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """The tiny configuration, with settings changed as by --set in its folder."""
    path = images.parent / "pipeline.toml"
    monkeypatch.chdir(path.parent)
    path.write_text(TINY.format(vae=tiny_vae))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def captioned(tiny: Callable[..., Config], images: Path, tmp_path: Path) -> Callable[..., Config]:
    """The tiny configuration with captions and a text encoder, CLIP's kind."""
    from texts import TEXTS, save_text_model, write_beside

    tiny()
    write_beside(images)
    folder = save_text_model(tmp_path / "text", "clip")
    path = images.parent / "pipeline.toml"
    path.write_text(path.read_text() + TEXTS.format(folder=folder))
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path) -> Path:
    """A folder with the tiny pipeline.toml and its finished cache; not to be written to."""
    from stages.encode.build import build

    folder = tmp_path_factory.mktemp("built")
    write_images(folder / "images")
    (folder / "pipeline.toml").write_text(TINY.format(vae=tiny_vae))
    build(load_config(folder / "pipeline.toml").encode, torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def built_with_components(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with components of the tokens, `pca4`."""
    from stages.encode.build import build

    folder = tmp_path_factory.mktemp("components")
    for name in ("images", "tiny.zarr"):
        shutil.copytree(built / name, folder / name)
    (folder / "pipeline.toml").write_text((built / "pipeline.toml").read_text() + COMPONENTS)
    build(load_config(folder / "pipeline.toml").encode, torch.device("cpu"))
    return folder


@pytest.fixture
def trainable(built: Path, tmp_path: Path) -> Callable[..., Config]:
    """The tiny configuration over the finished cache, with a run folder of its own."""
    return lambda *overrides: load_config(
        built / "pipeline.toml", [f"train.run={tmp_path / 'run'}", *overrides]
    )


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorePath]:
    """A bucket in a real object store."""
    from object_store import running

    with running(tmp_path_factory.mktemp("store")):
        yield StorePath("s3://bucket")


@pytest.fixture(scope="session")
def runs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a SiT, of one without encoders, and of a DiT."""
    from stages.train.loop import train

    folder = tmp_path_factory.mktemp("runs")
    fewer = ("train.steps=2", "train.checkpoint_every=1")
    for name, *settings in (
        ("sit",),
        ("plain", "train.align=[]"),
        ("dit", "train.model=DiT-XS/2"),
    ):
        config = load_config(
            built / "pipeline.toml",
            [f"train.run={folder / name}", "train.ema_decay=0.5", *fewer, *settings],
        )
        train(config.train, config.tensors, Placement(torch.device("cpu")))
    return folder
