"""Dask workers that share nothing with the build but the cache: what they have to have in common.

Two real workers, which find weights by the same names in folders of their own: the hub's files
below HF_HOME, others below the folder that a process works in.
"""

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from dask.distributed import Client
from dask_workers import dask_workers, scheduler
from huggingface_hub import constants
from patches import NAME, SPEC, Patches
from places import TOOLS
from safetensors.torch import load_file, save_file
from spaces import ldm_state
from texts import save_text_model, write_beside
from tiny_cache import content

from pipeline.config import Config
from stages.encode.build import BuildSummary, build
from stages.encode.build_options import BuildOptions, Cluster
from stages.encode.building import cluster
from stages.encode.building.likeness import WorkerError, software
from stages.encode.networks.registry import ENCODERS
from stages.vision import timm

CPU = torch.device("cpu")
# The folder that a process works in, by one path for all of them.
HERE = "/proc/self/cwd"
ON_HOST = f"Dask worker on {socket.gethostname()}"
VIT, DINO = 'encoders."test_vit.r160_in1k"', "encoders.dino"
# For a VAE with 8 px per latent.
LARGER = ("dataset.resolution=64", "latents.scaling_factor=1.0")
TRANSFORMERS = (f"{DINO}.library=transformers", f"{DINO}.input_size=32")
# By what is another one for the second worker: the settings that name it, and its column.
NETWORKS = {
    "VAE of the hub": (["latents.vae=me/vae"], "latents/vae"),
    "VAE in a folder": ([f"latents.vae={HERE}/vae"], "latents/vae"),
    "VAE's file on the hub": ([*LARGER, "latents.vae=me/ldm/ldm.safetensors"], "latents/ldm"),
    "VAE's file": ([*LARGER, f"latents.vae={HERE}/ldm.safetensors"], "latents/ldm"),
    "timm's hub": ([f"{VIT}.input_size=64"], "features/test_vit.r160_in1k"),
    "timm's file": (
        [f"{VIT}={{input_size=64, weights='{HERE}/vit.safetensors'}}"],
        "features/test_vit.r160_in1k",
    ),
    "transformers on the hub": ([*TRANSFORMERS, f"{DINO}.model=me/dino"], "features/dino"),
    "transformers in a folder": ([*TRANSFORMERS, f"{DINO}.model={HERE}/dino"], "features/dino"),
    "module": ([f"encoders.{NAME}.weights={HERE}/patches.safetensors"], f"features/{NAME}"),
    "text encoder on the hub": (["texts.tiny.model=me/text"], "features/tiny"),
    "text encoder in a folder": ([f"texts.tiny.model={HERE}/text"], "features/tiny"),
    "vocabulary": ([f"texts.tiny.model={HERE}/words"], "features/tiny"),
}


@pytest.fixture(scope="module")
def machines(
    tmp_path_factory: pytest.TempPathFactory, tiny_vae: Path, vavae: Any
) -> tuple[Path, Path]:
    """Two folders with networks of the same names, whose weights differ."""
    one, other = (tmp_path_factory.mktemp("machines") / name for name in ("one", "other"))
    one.mkdir()
    shutil.copytree(tiny_vae, one / "vae")
    save_text_model(one / "text", "clip")
    save_file(ldm_state(vavae, "f8d4"), one / "ldm.safetensors")
    save_file(Patches(12).state_dict(), one / "patches.safetensors")
    save_file(timm.create_model("test_vit").state_dict(), one / "vit.safetensors")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    dino = transformers.Dinov2Config(**sizes, image_size=32, patch_size=8)
    transformers.Dinov2Model(dino).save_pretrained(one / "dino")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(one / "dino")
    for name in ("vae", "text", "dino"):
        publish(one, f"me--{name}", *(one / name).iterdir())
    publish(one, "me--ldm", one / "ldm.safetensors")
    publish(one, "timm--test_vit.r160_in1k", one / "vit.safetensors", name="model.safetensors")
    shutil.copytree(one, other)
    for path in other.rglob("*.safetensors"):
        save_file({name: tensor + 0.1 for name, tensor in load_file(path).items()}, path)
    for folder, word in ((one, "coffee"), (other, "tea")):
        shutil.copytree(one / "text", folder / "words")
        tokeniser = folder / "words" / "tokenizer.json"
        tokeniser.write_text(tokeniser.read_text().replace('"coffee"', f'"{word}"'))
    return one, other


def publish(folder: Path, repository: str, *files: Path, name: str | None = None) -> None:
    """Put files where the hub's library keeps what it has downloaded."""
    kept = folder / "hub" / f"models--{repository}"
    snapshot = kept / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1" * 40)
    for file in files:
        shutil.copy(file, snapshot / (name or file.name))


@pytest.fixture(scope="module")
def client(machines: tuple[Path, Path]) -> Iterator[Client]:
    """Of a scheduler with two workers, one of which has other weights."""
    preload = ("--preload", str(TOOLS / "patches.py"))
    hubs = [{"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"} for folder in machines]
    with (
        scheduler() as client,
        dask_workers(client, *preload, folder=machines[0], **hubs[0]),
        dask_workers(client, *preload, folder=machines[1], **hubs[1]),
    ):
        yield client


@pytest.fixture
def on_workers(
    machines: tuple[Path, Path], client: Client, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Config], BuildSummary]:
    """Builds on the workers, from the first machine."""
    monkeypatch.chdir(machines[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(machines[0] / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(ENCODERS, NAME, SPEC)
    options = BuildOptions(cluster=Cluster(scheduler=client.scheduler.address))
    return lambda config: build(config.encode, CPU, options)


@pytest.mark.slow
@pytest.mark.parametrize("what", NETWORKS)
def test_a_worker_with_other_weights_is_refused_and_has_made_nothing(
    tiny: Callable[..., Config],
    images: Path,
    on_workers: Callable[[Config], BuildSummary],
    what: str,
) -> None:
    settings, column = NETWORKS[what]
    differs = "vocabulary" if what == "vocabulary" else "weights"
    tiny()
    write_beside(images)
    settings = ["cache.rows_per_shard=2", *settings]
    config, alone = tiny(*settings), tiny(*settings, f"cache.path={images.parent}/alone.zarr")
    with pytest.raises(WorkerError) as caught:
        on_workers(config)
    said = str(caught.value)
    assert said.startswith(f"{ON_HOST}: it has other {differs} (sha256")
    assert f" of {column}. Copy the build's files" in said
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", said))) == 2
    # Whatever the other worker has made is right.
    for one in (config, alone):
        assert build(one.encode, CPU).missing == 0
    assert content(config.cache.path) == content(alone.cache.path)


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_cache_is_named(
    tiny: Callable[..., Config], on_workers: Callable[[Config], BuildSummary]
) -> None:
    config = tiny("cache.rows_per_shard=2", f"cache.path={HERE}/tiny.zarr")
    with pytest.raises(WorkerError, match=rf"^{ON_HOST}: There is no cache at {HERE}/tiny.zarr"):
        on_workers(config)


@pytest.mark.slow
def test_other_versions_are_said_once_and_another_repa_cache_is_refused(
    tiny: Callable[..., Config],
    on_workers: Callable[[Config], BuildSummary],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny("cache.rows_per_shard=2")
    own = software(config.encode)
    monkeypatch.setattr(cluster, "software", lambda _: {**own, "torch": "0.1", "repa-cache": "9"})
    with pytest.raises(
        WorkerError, match=rf"^{ON_HOST}: it runs repa-cache .* \(the build's is 9\)"
    ):
        on_workers(config)
    monkeypatch.setattr(cluster, "software", lambda _: {**own, "torch": "0.1"})
    assert on_workers(config).missing == 0
    said = capsys.readouterr().err
    assert said.count(f"has torch {own['torch']} (the build's is 0.1): its shards may differ") == 1
