"""Files of the hub, with a server of its kind on loopback, one that is gone, and offline."""

import shutil
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from spaces import ldm_state

from stages.encode.network_settings import LatentsSettings
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.autoencoder_configs import autoencoder_scaling
from stages.encode.networks.autoencoder_files import AutoencoderError
from stages.encode.networks.frozen_encoder import FrozenEncoder
from stages.encode.networks.registry import ENCODERS, EncoderError
from stages.latents import scaling_in

CPU = torch.device("cpu")
VAE, COMMIT = "me/tiny-vae", "1" * 40
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's library keeps the repository; nothing is there yet."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--me--tiny-vae"


def keep(cached: Path, *files: Path) -> None:
    """Put files where the library keeps what it has downloaded."""
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    for file in files:
        shutil.copy(file, snapshot)


def set_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def go_offline(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "HF_HUB_OFFLINE is set"


def lose_the_network(monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    set_endpoint(monkeypatch, f"http://127.0.0.1:{port}")
    # Neither the library nor anything else waits and tries again.
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waited"))
    return "Connection refused"


NO_HUB = pytest.mark.parametrize("lose", [go_offline, lose_the_network])
Lose = Callable[[pytest.MonkeyPatch], str]


@NO_HUB
def test_without_the_hub_a_vae_says_at_once_what_is_missing_and_where_it_goes(
    cached: Path, monkeypatch: pytest.MonkeyPatch, lose: Lose
) -> None:
    reason = lose(monkeypatch)
    with pytest.raises(AutoencoderError) as caught:
        Autoencoder(VAE, CPU)
    first, *urls = str(caught.value).splitlines()
    assert first.startswith("latents.vae: cannot load 'me/tiny-vae': the Hugging Face hub could ")
    assert reason in first
    assert f"no {CONFIG} and no {WEIGHTS} in {cached}" in first
    assert "set latents.vae to a folder that diffusers saved, as ./tiny-vae" in first
    assert urls == [
        f"  https://huggingface.co/me/tiny-vae/resolve/main/{name}" for name in (CONFIG, WEIGHTS)
    ]


@NO_HUB
def test_without_the_hub_an_encoder_says_at_once_what_is_missing_and_where_it_goes(
    cached: Path, monkeypatch: pytest.MonkeyPatch, lose: Lose
) -> None:
    reason = lose(monkeypatch)
    with pytest.raises(EncoderError) as caught:
        FrozenEncoder(ENCODERS["dinov2-vit-s"], 224, None, CPU)
    first, url = str(caught.value).splitlines()
    assert "Cannot load vit_small_patch14_dinov2.lvd142m from timm's hub" in first
    assert reason in first
    folder = cached.with_name("models--timm--vit_small_patch14_dinov2.lvd142m")
    assert f"no model.safetensors in {folder}. " in first
    assert "set `weights` of the encoder to a local file" in first
    assert url.endswith("/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors")


@NO_HUB
def test_half_a_download_is_completed_by_name(
    cached: Path, monkeypatch: pytest.MonkeyPatch, lose: Lose, tiny_vae: Path
) -> None:
    keep(cached, tiny_vae / CONFIG)
    (cached / "blobs").mkdir()
    (cached / "blobs" / "a3.incomplete").write_bytes(b"half")
    (cached / "snapshots" / COMMIT / WEIGHTS).symlink_to(cached / "blobs" / "a3")
    lose(monkeypatch)
    assert autoencoder_scaling(LatentsSettings(vae=VAE))["scaling_factor"] == 0.5
    with pytest.raises(AutoencoderError) as caught:
        Autoencoder(VAE, CPU)
    first, _ = str(caught.value).splitlines()
    assert f"there is no {WEIGHTS} in {cached}. " in first


@NO_HUB
def test_what_is_in_the_hub_s_cache_needs_no_hub(
    cached: Path, monkeypatch: pytest.MonkeyPatch, lose: Lose, tiny_vae: Path
) -> None:
    keep(cached, tiny_vae / CONFIG, tiny_vae / WEIGHTS)
    lose(monkeypatch)
    assert Autoencoder(VAE, CPU).recipe() == Autoencoder(str(tiny_vae), CPU).recipe()


# What the server was asked for.
DOWNLOADED: list[str] = []


@pytest.fixture
def hub(
    cached: Path,  # noqa: ARG001 - what is downloaded goes there
    monkeypatch: pytest.MonkeyPatch,
    tiny_vae: Path,
    tmp_path: Path,
) -> Iterator[Path]:
    """A server that has the repository `me/tiny-vae` alone; gives the folder that it serves."""
    DOWNLOADED.clear()
    served = Path(shutil.copytree(tiny_vae, tmp_path / "served"))

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            DOWNLOADED.append(self.path)
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            repo, _, name = self.path.strip("/").partition("/resolve/main/")
            name = name.rpartition("/")[2]
            is_there = repo == VAE and (served / name).is_file()
            content = (served / name).read_bytes() if is_there else b""
            self.send_response(200 if is_there else 404)
            if not is_there:
                self.send_header("X-Error-Code", "EntryNotFound" if repo == VAE else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{name}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        set_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


def test_a_file_of_ldm_on_the_hub_is_downloaded_with_its_statistics(hub: Path, vavae: Any) -> None:
    save_file(ldm_state(vavae, "f8d4"), hub / "vae.safetensors")
    torch.save({"mean": torch.ones(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 2.0)}, hub / "s.pt")
    latents = LatentsSettings(vae=f"{VAE}/vae.safetensors", statistics=f"{VAE}/s.pt")
    assert latents.column == "latents/vae"
    scaling = scaling_in(Autoencoder.of(latents, CPU).recipe())
    assert scaling.told == {"rule": "channels", "scale": [0.5] * 4, "shift": [1.0] * 4}
    with pytest.raises(AutoencoderError, match=r"has no other\.pt, on the hub or in its cache"):
        Autoencoder(f"{VAE}/other.pt", CPU)


@pytest.mark.usefixtures("hub")
def test_a_vae_of_the_hub_is_downloaded_once(cached: Path, tiny_vae: Path) -> None:
    recipe = Autoencoder(VAE, CPU).recipe()
    assert recipe == Autoencoder(str(tiny_vae), CPU).recipe()
    assert {path.name for path in cached.glob("snapshots/*/*")} == {CONFIG, WEIGHTS}
    assert Autoencoder(VAE, CPU).recipe() == recipe
    assert [path.rpartition("/")[2] for path in DOWNLOADED] == [CONFIG, WEIGHTS]


def test_a_vae_whose_weights_are_a_pickle_is_found(hub: Path, tiny_vae: Path) -> None:
    state = Autoencoder(str(tiny_vae), CPU)._model.state_dict()
    (hub / WEIGHTS).unlink()
    torch.save(state, hub / "diffusion_pytorch_model.bin")
    assert Autoencoder(VAE, CPU).recipe() == Autoencoder(str(tiny_vae), CPU).recipe()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("me/other", "the hub has no me/other, or shows it only to those whom its authors let in"),
        ("me/a vae", "'me/a vae' is neither a folder nor a name on the hub"),
        ("a/b/c", "'a/b/c' is neither a folder nor a name on the hub"),
    ],
)
def test_what_is_not_on_the_hub_is_told_from_a_hub_that_is_gone(name: str, message: str) -> None:
    with pytest.raises(AutoencoderError, match=f"latents.vae: cannot load '{name}': {message}"):
        Autoencoder(name, CPU)


def test_a_repository_without_weights_of_a_vae_is_named(hub: Path) -> None:
    (hub / WEIGHTS).unlink()
    with pytest.raises(AutoencoderError, match=f"me/tiny-vae has no {WEIGHTS} and no .*bin"):
        Autoencoder(VAE, CPU)
