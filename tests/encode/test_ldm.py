"""Files of autoencoders in LDM's format: against tensors of its code, and refused if wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from places import GOLDEN
from safetensors.torch import save_file
from spaces import ldm_state
from torch import Tensor

from stages import vision
from stages.encode.network_settings import LatentsSettings
from stages.encode.networks.autoencoder import Autoencoder
from stages.encode.networks.autoencoders import AutoencoderError
from stages.encode.networks.autoencoders.ldm import read_config, read_state
from stages.latents import DEVIATIONS, MEANS, ScalingError, scaling_in

CPU = torch.device("cpu")
NAMES = ("f16d32", "f8d4")


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_latents_and_pictures_are_those_of_ldm_s_code(
    vavae: Any, name: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file(ldm_state(vavae, name), path)
    autoencoder = Autoencoder(str(path), CPU, told={"scaling_factor": 1.0})
    moments = autoencoder.encode(vavae[f"{name}.image"])["moments"]
    close(moments, vavae[f"{name}.moments"])
    mean, std = moments.chunk(2, dim=1)
    decoded = autoencoder._model.decode(mean + std * vavae[f"{name}.noise"]).sample
    close(decoded, vavae[f"{name}.decoded"])
    side = vavae[f"{name}.image"].shape[-1]
    assert LatentsSettings(vae=str(path)).downsampling == side // moments.shape[-1]


def test_every_name_of_va_vae_s_file_becomes_that_of_diffusers(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "vavae_key_map.json").read_text())
    expected: dict[str, tuple[str, list[int]]] = golden["map"]
    assert len(expected) == 342
    path = tmp_path / "vavae.pt"
    with torch.device("meta"):
        model = vision.AutoencoderKL.from_config(golden["diffusers_config"])
    weights = {key: torch.empty(shape) for key, (_, shape) in expected.items()}
    torch.save({"state_dict": weights}, path)
    state = read_state(path)
    assert state.keys() == {name for name, _ in expected.values()} == model.state_dict().keys()
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    config = read_config(path)
    assert config.pop("scaling_factor") is None
    wanted = {key: golden["diffusers_config"].get(key, value) for key, value in config.items()}
    assert config == {**wanted, "_class_name": "AutoencoderKL"}


def small(tmp_path: Path, vavae: Any, **kept: Any) -> Path:
    path = tmp_path / "vavae.pt"
    state = ldm_state(vavae, "f16d32")
    torch.save({"state_dict": state, **kept}, path)
    return path


def test_a_checkpoint_of_training_is_read_without_what_it_was_trained_with(
    vavae: Any, tmp_path: Path
) -> None:
    state = ldm_state(vavae, "f16d32")
    beside = {name: torch.zeros(2) for name in ("foundation_model.x", "linear_proj.w", "loss.d.w")}
    torch.save({"state_dict": state | beside, "epoch": 3}, tmp_path / "whole.pt")
    torch.save({"model": state}, tmp_path / "model.ckpt")
    recipes = [
        Autoencoder(str(tmp_path / name), CPU).recipe() for name in ("whole.pt", "model.ckpt")
    ]
    assert recipes[0] == recipes[1]
    torch.save({"state_dict": state | {"decoder.more.weight": torch.zeros(1)}}, tmp_path / "a.pt")
    with pytest.raises(AutoencoderError, match=r"1 tensors in .*a\.pt are of no .*decoder\.more"):
        Autoencoder(str(tmp_path / "a.pt"), CPU)
    torch.save({"state_dict": state | {"unet.weight": torch.zeros(1)}}, tmp_path / "b.pt")
    with pytest.raises(AutoencoderError, match=r"b\.pt: 1 tensors in it are of no .*unet\.weight"):
        Autoencoder(str(tmp_path / "b.pt"), CPU)


def test_wrong_files_are_refused_by_name(vavae: Any, tmp_path: Path) -> None:
    state = ldm_state(vavae, "f8d4")
    path = tmp_path / "vae.pt"

    def refused(content: Any, message: str) -> None:
        torch.save(content, path)
        with pytest.raises(AutoencoderError, match=message):
            Autoencoder(str(path), CPU)

    lacking = {name: tensor for name, tensor in state.items() if name != "decoder.conv_in.bias"}
    refused(
        lacking, r"1 of the autoencoder's tensors are missing in .*vae\.pt, decoder\.conv_in\.b"
    )
    refused(
        {"encoder.x": torch.zeros(1)}, r"vae\.pt: it is no autoencoder of LDM: it has no encoder"
    )
    refused({"encoder.down_blocks.0.x": torch.zeros(1)}, "have diffusers' names. Name the folder")
    refused([1, 2], "it holds one list")
    refused(state | {"quant_conv.bias": torch.zeros(3)}, "size mismatch for quant_conv")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AutoencoderError, match=r"vae\.pt cannot be read as weights"):
        Autoencoder(str(path), CPU)
    path.unlink()
    with pytest.raises(AutoencoderError, match=r"vae\.pt"):
        Autoencoder(str(path), CPU)
    assert LatentsSettings(vae=str(path)).problem == f"there is no file {path}"


@pytest.mark.parametrize("names", [("mean", "std"), ("latents_bias", "latents_scale")])
def test_statistics_beside_a_file_scale_its_latents(
    vavae: Any, tmp_path: Path, names: tuple[str, str]
) -> None:
    mean, std = torch.randn(1, 32, 1, 1), torch.rand(1, 32, 1, 1) + 0.5
    second = std if names[1] == "std" else 1 / std
    torch.save(dict(zip(names, (mean, second), strict=True)), tmp_path / "stats.pt")
    path = small(tmp_path, vavae)
    alone = LatentsSettings(vae=str(path))
    with pytest.raises(ScalingError, match="does not tell how its latents are scaled"):
        scaling_in(Autoencoder.of(alone, CPU).recipe())
    latents = alone.model_copy(update={"statistics": str(tmp_path / "stats.pt")})
    autoencoder = Autoencoder.of(latents, CPU)
    recipe = autoencoder.recipe()
    assert recipe[MEANS] == pytest.approx(mean.flatten().tolist())
    assert recipe[DEVIATIONS] == pytest.approx(std.flatten().tolist())
    scaling = scaling_in(recipe)
    assert scaling.rule == "channels"
    raw = torch.randn(2, 32, 2, 2)
    torch.testing.assert_close(scaling.raw((raw - mean) / std), raw)
    expected = autoencoder._model.decode(raw).sample.mul(127.5).add(127.5).clamp(0, 255)
    found = autoencoder.decode((raw - mean) / std)
    assert (found.float() - expected).abs().max() <= 1
    torch.save({"other": 1}, tmp_path / "stats.pt")
    with pytest.raises(AutoencoderError, match=r"stats\.pt cannot be read as weights"):
        Autoencoder.of(latents, CPU)


def test_a_factor_can_be_told_of_a_file_that_has_none(vavae: Any, tmp_path: Path) -> None:
    latents = LatentsSettings(vae=str(small(tmp_path, vavae)), scaling_factor=0.2325)
    scaling = scaling_in(Autoencoder.of(latents, CPU).recipe())
    assert (scaling.rule, scaling.scale, scaling.shift) == ("factor", 0.2325, 0.0)
