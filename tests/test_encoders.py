from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages.encode.autoencoder import Autoencoder, AutoencoderError
from stages.encode.demo_autoencoder.train import HELD_OUT, reconstruction_psnr
from stages.encode.encoders import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from stages.encode.features import EncoderError, FrozenEncoder
from stages.encode.photographs import open_photograph
from stages.encode.settings import DEMO_AUTOENCODER, LatentsSettings
from stages.encode.weights import weights_sha256
from stages.vision import AutoencoderKL, timm

CPU = torch.device("cpu")
DEMO = LatentsSettings(vae=DEMO_AUTOENCODER)


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_efficientnet_has_the_tokens_of_its_stage_of_stride_16(photographs: torch.Tensor) -> None:
    spec = ENCODERS["efficientnet-lite0"]
    tokens = FrozenEncoder(spec, 128, None, CPU).tokens(photographs)
    assert tokens.shape == (2, 64, 112)


def test_efficientnet_has_its_real_weights() -> None:
    photograph = open_photograph("chelsea", 224).crop((40, 0, 264, 224))
    pixels = torch.tensor(list(photograph.get_flattened_data())).reshape(224, 224, 3)
    encoder = FrozenEncoder(ENCODERS["efficientnet-lite0"], 224, None, CPU)
    classes = encoder._model((pixels.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5).topk(5).indices
    assert set(classes[0].tolist()) & {281, 282, 285}, "ImageNet's tabby, tiger and Egyptian cats"


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderSpec, Path]:
    """A DINOv2 of the registry's class with small random weights, saved at its native size."""
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=56, **arguments)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "dinov2.pth"
    torch.save(model.state_dict(), path)
    return EncoderSpec("vit_small_patch14_dinov2.lvd142m", 14, 224, arguments=arguments), path


def test_dinov2_normalises_before_it_resizes_and_drops_the_class_token(
    tiny_dinov2: tuple[EncoderSpec, Path], photographs: torch.Tensor
) -> None:
    spec, path = tiny_dinov2
    tokens = FrozenEncoder(spec, 56, path, CPU).tokens(photographs)
    model = timm.create_model(spec.timm_model, img_size=56, num_classes=0, **spec.arguments)
    model.load_state_dict(torch.load(path))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    inputs = F.interpolate((photographs / 255 - mean) / std, 56, mode="bicubic", antialias=False)
    expected = model.eval().forward_features(inputs)[:, 1:]
    assert tokens.shape == (2, 16, 32)
    torch.testing.assert_close(tokens, expected)


def test_another_input_size_resamples_the_positions(
    tiny_dinov2: tuple[EncoderSpec, Path], photographs: torch.Tensor
) -> None:
    spec, path = tiny_dinov2
    assert FrozenEncoder(spec, 84, path, CPU).tokens(photographs).shape == (2, 36, 32)


def test_every_encoder_is_a_timm_model_whose_grid_fits_256_px() -> None:
    for name, spec in ENCODERS.items():
        assert timm.is_model(spec.timm_model.split(".")[0]), name
        assert spec.size_for(256) // spec.stride == 16, name


def test_a_torn_file_of_weights_and_one_of_another_model_are_named(
    tiny_dinov2: tuple[EncoderSpec, Path], tmp_path: Path
) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(EncoderError, match=r"w\.pth holds other weights: \d+ of \d+ tensors"):
        FrozenEncoder(ENCODERS["efficientnet-lite0"], 64, tmp_path / "w.pth", CPU)
    (tmp_path / "torn.pth").write_bytes(tiny_dinov2[1].read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"Cannot load the weights in .*torn\.pth"):
        FrozenEncoder(tiny_dinov2[0], 56, tmp_path / "torn.pth", CPU)


def test_a_digest_of_weights_changes_with_any_of_them() -> None:
    model = torch.nn.Linear(3, 3)
    before = weights_sha256(model)
    assert weights_sha256(model) == before
    with torch.no_grad():
        model.bias[2] += 1e-6
    assert weights_sha256(model) != before


def test_moments_are_the_mean_and_standard_deviation_of_the_posterior(
    tiny_vae: Path, photographs: torch.Tensor
) -> None:
    moments = Autoencoder(str(tiny_vae), CPU).encode(photographs)
    posterior = AutoencoderKL.from_pretrained(tiny_vae).encode(photographs / 127.5 - 1).latent_dist
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.std], 1))


def test_decoding_undoes_the_scaling_and_truncates(tiny_vae: Path) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    images = Autoencoder(str(tiny_vae), CPU).decode(latents)
    raw = AutoencoderKL.from_pretrained(tiny_vae).decode(latents / 0.5).sample
    expected = (raw * 127.5 + 127.5).clamp(0, 255).floor().to(torch.uint8)
    assert (images.int() - expected.int()).abs().max() <= 1
    assert (images == expected).float().mean() > 0.99


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutoencoderError, match=r"latents\.vae: cannot load"):
        Autoencoder(str(tmp_path), CPU)


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_demo_autoencoder_reconstructs_photographs_it_was_not_trained_on(name: str) -> None:
    model = AutoencoderKL.from_pretrained(DEMO.location, torch_dtype=torch.float32)
    assert reconstruction_psnr(model, [open_photograph(name, 160)]) >= 24


def test_the_demo_autoencoder_is_small() -> None:
    assert (
        sum(file.stat().st_size for file in Path(DEMO.location).iterdir() if file.is_file()) < 4e6
    )
