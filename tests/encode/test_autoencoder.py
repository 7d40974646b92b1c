import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from cache.reader import Cache
from pipeline.config import Config
from stages.encode.build import build
from stages.encode.images.sources.samples import open_photograph
from stages.encode.network_settings import DEMO_AUTOENCODER, LatentsSettings
from stages.encode.networks.autoencoder import Autoencoder, AutoencoderError
from stages.encode.networks.autoencoder_configs import autoencoder_scaling
from stages.encode.networks.demo_autoencoder.train import HELD_OUT, reconstruction_psnr
from stages.latents import ScalingError, scaling_in, scaling_of
from stages.vision import AutoencoderKL

CPU = torch.device("cpu")
DEMO = LatentsSettings(vae=DEMO_AUTOENCODER)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_moments_are_the_mean_and_standard_deviation_of_the_posterior(
    tiny_vae: Path, photographs: Tensor
) -> None:
    moments = Autoencoder(str(tiny_vae), CPU).encode(photographs)["moments"]
    posterior = AutoencoderKL.from_pretrained(tiny_vae).encode(photographs / 127.5 - 1).latent_dist
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], 1))


def test_decoding_undoes_the_scaling_and_truncates(tiny_vae: Path) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = Autoencoder(str(tiny_vae), CPU).decode(latents)
    raw = AutoencoderKL.from_pretrained(tiny_vae).decode(latents / 0.5).sample
    expected = (raw * 127.5 + 127.5).clamp(0, 255).floor().to(torch.uint8)
    assert (images.int() - expected.int()).abs().max() <= 1
    assert (images == expected).float().mean() > 0.99


def test_a_batch_that_cannot_be_decoded_at_once_is_halved_for_good(
    tiny_vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    autoencoder, sizes = Autoencoder(str(tiny_vae), CPU), []
    latents = torch.randn(7, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = autoencoder.decode(latents)
    real = autoencoder._model.decode

    def decode(part: Tensor) -> Any:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(part)

    monkeypatch.setattr(autoencoder._model, "decode", decode)
    for _ in range(2):
        difference = autoencoder.decode(latents).int() - expected.int()
        assert difference.abs().max() <= 1
    assert sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1]
    said = capsys.readouterr().err
    assert "the VAE's decoder: out of memory; 2 images at a time from here on" in said


def save_vae(folder: Path, levels: int, channels: int, **config: Any) -> LatentsSettings:
    """A small AutoencoderKL with random weights: 2^(levels - 1) px per latent."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **config,
    )
    model.save_pretrained(folder)
    return LatentsSettings(vae=str(folder))


@pytest.mark.parametrize(
    ("levels", "channels", "config"),
    [
        (4, 4, {"scaling_factor": 0.13025, "force_upcast": True}),
        (4, 16, {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False}),
        (5, 16, {"scaling_factor": 0.2325}),
        (1, 3, {}),
    ],
    ids=["SDXL", "Flux", "f16", "f1"],
)
def test_any_autoencoder_s_shapes_and_scaling_follow_its_configuration(
    levels: int, channels: int, config: dict[str, Any], photographs: Tensor, tmp_path: Path
) -> None:
    latents = save_vae(tmp_path, levels, channels, **config)
    autoencoder = Autoencoder(latents.location, CPU)
    side = 64 >> (levels - 1)
    moments = autoencoder.encode(photographs)["moments"]
    assert latents.downsampling == 64 // side
    assert moments.shape == (2, 2 * channels, side, side)
    assert autoencoder.decode(moments[:, :channels]).shape == photographs.shape
    scaling = {
        "latent_channels": channels,
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "shift_factor": config.get("shift_factor", 0.0),
    }
    assert scaling.items() <= autoencoder_scaling(latents).items()
    assert autoencoder_scaling(latents).items() <= autoencoder.recipe().items()


def test_large_images_are_encoded_whole(tiny_vae: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8, generator=generator)
    reference = AutoencoderKL.from_pretrained(tiny_vae)
    whole = reference.encode(images / 127.5 - 1).latent_dist.mean
    autoencoder = Autoencoder(str(tiny_vae), CPU)
    torch.testing.assert_close(autoencoder.encode(images)["moments"][:, :4], whole)
    reference.enable_tiling()
    reference.tile_sample_min_size, reference.tile_latent_min_size = 48, 12
    tiled = reference.encode(images / 127.5 - 1).latent_dist.mean
    assert (tiled - whole).norm() > 0.01 * whole.norm()
    assert not autoencoder._model.use_tiling
    assert not autoencoder._model.use_slicing


@pytest.fixture
def damaged(tiny_vae: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vae, tmp_path / "vae"))


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def check_refused(folder: Path, message: str) -> None:
    with pytest.raises(AutoencoderError, match=rf"latents\.vae: .*{message}"):
        Autoencoder(str(folder), CPU)


def test_a_folder_without_a_model_and_one_of_a_pipeline_are_named(
    tmp_path: Path, damaged: Path
) -> None:
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path / "empty", "has no config.json; expected a folder that diffusers saved")
    (damaged / "model_index.json").write_text("{}")
    check_refused(damaged, f"holds a pipeline; name the autoencoder in it: {damaged}/vae")


def test_another_kind_of_autoencoder_is_refused_before_anything_runs(damaged: Path) -> None:
    rewrite_config(damaged, _class_name="VQModel", block_out_channels=None)
    check_refused(damaged, "holds a VQModel, expected one of AutoencoderKL, AutoencoderKLFlux2")
    settings = LatentsSettings(vae=str(damaged))
    assert str(settings.problem).startswith(f"{damaged} holds a VQModel, expected one of ")
    assert settings.downsampling is None


MEANS, DEVIATIONS = [0.0, 0.1, 0.2, 0.3], [1.0, 2.0, 4.0, 0.5]


def test_a_configuration_that_allows_for_several_scalings_is_refused_until_one_is_named(
    damaged: Path, tiny: Callable[..., Config]
) -> None:
    own = {"latents_mean": MEANS, "latents_std": DEVIATIONS, "shift_factor": 0.25}
    rewrite_config(damaged, scaling_factor=0.5, **own)
    vae = f"latents.vae={damaged}"
    with pytest.raises(ScalingError, match=r"latents\.scaling: the autoencoder has both means and"):
        build(tiny(vae).encode, CPU)
    assert not Path("tiny.zarr").exists()
    told = {}
    for rule in ("factor", "channels", "channels-and-factor"):
        config = tiny(vae, f"latents.scaling={rule}")
        build(config.encode, CPU)
        column = Cache(config.cache.path).column(config.latents.column).column
        told[rule] = scaling_of(column, config.latents.scaling).told
    means = pytest.approx(MEANS)
    assert told == {
        "factor": {"scale": 0.5, "shift": 0.25},
        "channels": {"rule": "channels", "scale": [1, 0.5, 0.25, 2], "shift": means},
        "channels-and-factor": {
            "rule": "channels-and-factor",
            "scale": [0.5, 0.25, 0.125, 1],
            "shift": means,
        },
    }


def test_means_and_deviations_alone_are_taken_and_what_has_none_has_no_such_rule(
    damaged: Path, tiny_vae: Path
) -> None:
    rewrite_config(damaged, scaling_factor=None, latents_mean=MEANS, latents_std=DEVIATIONS)
    assert scaling_in(Autoencoder(str(damaged), CPU).recipe()).rule == "channels"
    with pytest.raises(ScalingError, match="has no mean and deviation of each channel"):
        scaling_in(Autoencoder(str(tiny_vae), CPU).recipe(), "channels")


def test_latents_of_another_deviation_than_one_are_told_of(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    build(tiny("latents.scaling_factor=40.0").encode, CPU)
    said = capsys.readouterr().err
    assert "latents/tiny-vae: its latents are scaled to a deviation of " in said
    build(tiny("latents.scaling_factor=40.0", "latents.scaling=measured").encode, CPU)
    assert "scaled to a deviation" not in capsys.readouterr().err


def test_torn_and_missing_and_foreign_weights_are_refused_whole(damaged: Path) -> None:
    weights = damaged / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    tensors = load(content)
    weights.write_bytes(content[:5000])
    check_refused(damaged, "cannot load")
    save_file({n: t for n, t in tensors.items() if n != "quant_conv.bias"}, weights)
    check_refused(damaged, r"1 of the autoencoder's tensors are missing in .*, quant_conv\.bias")
    save_file(tensors | {"quant_conv.bias": torch.zeros(3)}, weights)
    check_refused(damaged, "cannot load")
    weights.unlink()
    check_refused(damaged, "cannot load")
    (damaged / "config.json").write_text('{"_class_name": "Auto')
    check_refused(damaged, "config.json is torn")


def test_what_a_configuration_leaves_out_is_as_diffusers_has_it(damaged: Path) -> None:
    rewrite_config(damaged, scaling_factor=None, shift_factor=None, latent_channels=None)
    scaling = autoencoder_scaling(LatentsSettings(vae=str(damaged)))
    assert scaling["scaling_factor"] == 0.18215
    assert scaling.items() <= Autoencoder(str(damaged), CPU).recipe().items()
    rewrite_config(damaged, block_out_channels=None)
    assert LatentsSettings(vae=str(damaged)).downsampling == 1


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_demo_autoencoder_reconstructs_photographs_it_was_not_trained_on(name: str) -> None:
    model = AutoencoderKL.from_pretrained(DEMO.location, torch_dtype=torch.float32)
    assert reconstruction_psnr(model, [open_photograph(name, 160)]) >= 24


def test_the_demo_autoencoder_is_small() -> None:
    files = [file for file in Path(DEMO.location).iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4e6
