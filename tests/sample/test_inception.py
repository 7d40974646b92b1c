import os
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.evaluate import inception
from stages.evaluate.inception import Inception, InceptionError
from stages.placement import Placement, find_device

CPU = Placement(torch.device("cpu"))


@pytest.fixture
def network(inception_weights: Path) -> Inception:
    return Inception(inception_weights, CPU)


def images(count: int, side: int = 64) -> torch.Tensor:
    source = np.random.default_rng(0)
    return torch.from_numpy(source.integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def test_features_are_the_library_s(network: Inception) -> None:
    features = network(images(2))
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    pool, logits = network._network(images(2))
    torch.testing.assert_close(features["pool"], pool)
    torch.testing.assert_close(features["logits"], logits)
    weight = network._network.fc.weight
    torch.testing.assert_close(features["logits"], pool @ weight.T, rtol=1e-4, atol=1e-4)


def test_spatial_features_are_seven_channels_at_each_place_channels_last(
    network: Inception,
) -> None:
    found: list[torch.Tensor] = []
    branch: Any = network._network.Mixed_6d.branch1x1
    branch.bn.register_forward_hook(lambda _, __, output: found.append(output.clone()))
    spatial = network(images(2))["spatial"]
    activated = found[0].relu()
    assert activated.shape == (2, 192, 17, 17)
    for row, column, channel in ((0, 0, 0), (3, 11, 6), (16, 16, 2)):
        position = (row * 17 + column) * 7 + channel
        assert torch.equal(spatial[:, position], activated[:, channel, row, column])


def test_images_may_be_resized_as_pytorch_fid_does(
    network: Inception, inception_weights: Path
) -> None:
    like = Inception(inception_weights, CPU, "pytorch-fid")
    found: list[torch.Tensor] = []
    like._network.Conv2d_1a_3x3.register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))
    features = like(images(2, 40))
    shown = images(2, 40).float() / 255
    resized = torch.nn.functional.interpolate(
        shown, size=(299, 299), mode="bilinear", align_corners=False
    )
    assert torch.equal(found[0], 2 * resized - 1)
    plain = network(images(2, 40))
    assert not torch.allclose(features["pool"], plain["pool"])
    assert features["pool"].shape == plain["pool"].shape
    # Statistics of one are not those of the other.
    assert like.identity != network.identity
    assert like.weights_sha256 == network.weights_sha256


def test_other_weights_than_the_published_ones_are_refused(
    inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "SHA256_PREFIX", "6726825d")
    with pytest.raises(InceptionError, match="expected 6726825d"):
        Inception(inception_weights, CPU)


def test_without_a_network_one_message_says_what_to_download_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InceptionError) as caught:
        Inception(None, CPU)
    message = str(caught.value)
    name = "weights-inception-2015-12-05-6726825d.pth"
    assert f"Download https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{name}" in (
        message
    )
    assert str(tmp_path / "hub" / "checkpoints" / name) in message
    assert "--inception-weights" in message


def test_what_was_downloaded_before_is_used(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    kept = tmp_path / "checkpoints" / inception.URL.rpartition("/")[2]
    kept.parent.mkdir()
    kept.symlink_to(inception_weights)
    assert Inception(None, CPU).weights_sha256.startswith(inception.SHA256_PREFIX)


# The published evaluation of ADM-G, U at 256 px: its samples, reference and figures.
PUBLISHED = {"fid": 3.94, "sfid": 6.14, "is": 215.8, "precision": 0.827, "recall": 0.531}


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
@pytest.mark.skipif(
    "REPA_CACHE_ADM" not in os.environ,
    reason="REPA_CACHE_ADM names no folder with admnet_guided_upsampled_imagenet256.npz, "
    "VIRTUAL_imagenet256_labeled.npz and weights-inception-2015-12-05-6726825d.pth",
)
def test_published_samples_have_their_published_figures(tiny: Any) -> None:
    from stages.evaluate.evaluate import evaluate, open_samples
    from stages.evaluate.evaluate_settings import EvaluateSettings

    folder = Path(os.environ["REPA_CACHE_ADM"])
    settings = EvaluateSettings(
        reference=folder / "VIRTUAL_imagenet256_labeled.npz",
        inception_weights=folder / "weights-inception-2015-12-05-6726825d.pth",
        metrics=tuple(PUBLISHED),
    )
    samples = open_samples(folder / "admnet_guided_upsampled_imagenet256.npz", 4)
    place = Placement(find_device("auto"))
    (results,) = evaluate(settings, [samples], tiny().encode, place)
    found = {result.metric: result.value for result in results}
    for metric, value in PUBLISHED.items():
        tolerance = 0.002 if metric in {"precision", "recall"} else 0.005 * value
        assert found[metric] == pytest.approx(value, abs=tolerance)
