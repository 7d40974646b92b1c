import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT, TOOLS
from runs import drawn_into

from cache.errors import StaleCacheError
from pipeline.config import Config, load_config
from stages.encode.images.crop import centre_crop, decode
from stages.evaluate.evaluate import evaluate, open_samples
from stages.evaluate.evaluate_settings import INCEPTION_METRICS
from stages.evaluate.image_sets import FolderImages, ImageSetError, NpzError, write_images
from stages.evaluate.inception import Inception
from stages.evaluate.metrics import (
    fit_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from stages.evaluate.reference import ReferenceSetError
from stages.evaluate.results import (
    EvaluateError,
    Result,
    ResultsError,
    read_results,
    results_path,
)
from stages.placement import Placement

CPU = Placement(torch.device("cpu"))
FD = "fd_efficientnet-lite0"


@pytest.fixture
def judged(built: Path, runs: Path, tmp_path: Path) -> Callable[..., list[Result]]:
    """Draws samples of a run and evaluates them."""

    def judge(*overrides: str, run: str = "sit", samples: Path | None = None, **more: Any) -> Any:
        config = configured(built, runs, *overrides, run=run)
        if samples is None:
            name = {"sit": "samples"}.get(run, run)
            samples = drawn_into(tmp_path / name, config).samples.folder
        return judged_by(config, samples, **more)

    return judge


def configured(built: Path, runs: Path, *overrides: str, run: str = "sit") -> Config:
    return load_config(built / "pipeline.toml", [f"train.run={runs / run}", *overrides])


def judged_by(config: Config, samples: Path, **options: Any) -> list[Result]:
    opened = [open_samples(samples, 2)]
    (results,) = evaluate(config.evaluate, opened, config.encode, CPU, **options)
    return results


@pytest.fixture(scope="module")
def crops(built: Path) -> np.ndarray:
    """The crops of the cached data set, uint8 [21, 32, 32, 3]."""
    files = sorted((built / "images").rglob("*.jpg"))
    return np.stack([centre_crop(decode(file.read_bytes()), 32) for file in files])


@pytest.fixture
def photographs(crops: np.ndarray, tmp_path: Path) -> Path:
    """A folder with these crops, without manifest."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, pixels in enumerate(crops):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def values(results: list[Result]) -> dict[str, float]:
    return {result.metric: result.value for result in results}


def test_evaluation_says_what_was_compared_and_that_the_encoder_is_no_stranger(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    (result,) = judged()
    assert result.metric == FD
    assert result.value > 0
    assert (result.images, result.reference_images) == (6, 21)
    assert result.remarks == (
        "fewer samples than the 112 features, which makes it too large",
        "fewer reference images than the 112 features, which makes it too large",
        "the model was aligned to this encoder",
        f"hardly better than noise, which is at {result.noise:.4g}",
    )
    assert read_results(tmp_path / "samples") == [result]


def test_the_report_tells_where_every_number_is_from(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    judged()
    report = json.loads(results_path(tmp_path / "samples").read_text())
    drawn = report["drawn"]
    assert (drawn["labels"], drawn["model"], drawn["steps"]) == ("balanced", "SiT-XS/2", 2)
    assert len(drawn["checkpoint_sha256"]) == 64
    assert len(report["weights_sha256"][FD]) == 64
    assert report["versions"].keys() >= {"repa-cache", "torch", "torch-fidelity", "timm"}
    assert report["results"][0]["reference"].endswith("tiny.zarr")


def test_a_model_that_was_not_aligned_is_not_marked(judged: Callable[..., list[Result]]) -> None:
    (result,) = judged("train.align=[]", run="plain")
    assert not any("aligned" in remark for remark in result.remarks)


def test_of_images_from_elsewhere_alignment_is_not_known(
    judged: Callable[..., list[Result]], photographs: Path
) -> None:
    (result,) = judged(samples=photographs)
    assert "whether the model was aligned to this encoder is not known" in result.remarks


def test_images_of_the_data_set_are_closer_than_samples(
    judged: Callable[..., list[Result]], photographs: Path
) -> None:
    (drawn,) = judged()
    (real,) = judged(samples=photographs)
    assert real.value < 1e-3 < drawn.value


def test_images_of_the_data_set_are_about_at_their_floor_and_noise_is_far_above(
    judged: Callable[..., list[Result]], photographs: Path, tmp_path: Path
) -> None:
    for number in range(10, 21):
        (photographs / f"{number}.png").unlink()
    (real,) = judged(samples=photographs)
    assert real.floor_images == 10
    assert 0.2 * real.floor < real.value < real.floor < 0.5 * real.noise
    assert not any("noise" in remark for remark in real.remarks)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    write_images(tmp_path / "noise.npz", iter(pixels), np.zeros(10, np.int64))
    (noise,) = judged(samples=tmp_path / "noise.npz")
    assert noise.value == pytest.approx(noise.noise, rel=0.1)
    assert noise.remarks[-1] == f"hardly better than noise, which is at {noise.noise:.4g}"


def test_a_floor_of_fewer_images_than_samples_says_so(
    judged: Callable[..., list[Result]], photographs: Path
) -> None:
    (result,) = judged(samples=photographs)
    assert (result.images, result.floor_images) == (21, 10)
    assert any("that of 10 real images, as the reference has no more" in r for r in result.remarks)


def test_another_encoder_joins_what_was_measured_before(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    (first,) = judged()
    folder = tmp_path / "samples"
    larger = "encoders.efficientnet-lite0.input_size=128"
    reference = f"evaluate.reference={folder}"
    other = judged(larger, reference, "train.align=[]", samples=folder)
    assert read_results(folder) == [first, *other]
    again = judged(larger, reference, "train.align=[]", samples=folder)
    assert read_results(folder) == [first, *again]


def test_results_that_cannot_be_added_to_are_refused_before_anything_is_measured(
    judged: Callable[..., list[Result]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged()
    results_path(tmp_path / "samples").write_text("{")
    capsys.readouterr()
    with pytest.raises(ResultsError, match="Move it away"):
        judged(samples=tmp_path / "samples")
    assert capsys.readouterr().err == ""


def test_missing_samples_and_another_encoder_are_refused(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    with pytest.raises(EvaluateError, match=r"There is no .*Run `repa-cache sample` first"):
        judged(samples=tmp_path / "nothing")
    with pytest.raises(StaleCacheError, match="input_size: cache 64, configuration 96"):
        judged("encoders.efficientnet-lite0.input_size=96", "train.align=[]", run="plain")
    judged()
    (tmp_path / "samples/000004.png").unlink()
    with pytest.raises(EvaluateError, match="1 of 6 images are missing"):
        judged(samples=tmp_path / "samples")


ALL = "evaluate.metrics=['fid', 'sfid', 'is', 'precision', 'recall', 'kid']"


@pytest.mark.slow
def test_all_metrics_are_those_of_the_features_of_all_images(
    judged: Callable[..., list[Result]],
    inception_weights: Path,
    crops: np.ndarray,
    tmp_path: Path,
) -> None:
    results = judged(ALL, f"evaluate.inception_weights={inception_weights}", "sample.images=13")
    assert [result.metric for result in results] == [*INCEPTION_METRICS, FD]
    drawn = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "samples").glob("*.png"))]
    network = Inception(inception_weights, CPU)
    own, other = (
        network(torch.from_numpy(np.stack(list(pixels))).permute(0, 3, 1, 2))
        for pixels in (drawn, crops)
    )
    gaussians = {
        name: [fit_gaussian([features[name].numpy()]) for features in (own, other)]
        for name in ("pool", "spatial")
    }
    precision, recall = precision_and_recall(own["pool"], other["pool"])
    expected = {
        "fid": frechet_distance(*gaussians["pool"]),
        "sfid": frechet_distance(*gaussians["spatial"]),
        "is": inception_score(own["logits"])[0],
        "precision": precision,
        "recall": recall,
        "kid": kernel_distance(own["pool"], other["pool"])[0],
    }
    found = values(results)
    for name, value in expected.items():
        # KID draws subsets, and the cache holds its rows in another order.
        tolerance = 0.25 if name == "kid" else 2e-3
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-4), name
    assert "fewer samples than the 2,048 features" in results[0].remarks[0]


def write_adm_file(path: Path, crops: np.ndarray, weights: Path) -> None:
    """Images with the statistics of their features, as ADM's references have them."""
    features = Inception(weights, CPU)(torch.from_numpy(crops).permute(0, 3, 1, 2))
    pool, spatial = (fit_gaussian([features[name].numpy()]) for name in ("pool", "spatial"))
    statistics = {
        "mu": pool.mean,
        "sigma": pool.covariance,
        "mu_s": spatial.mean,
        "sigma_s": spatial.covariance,
    }
    np.savez(path, arr_0=crops, **statistics)


@pytest.mark.slow
def test_a_reference_may_be_a_folder_adm_s_file_or_kept_statistics(
    judged: Callable[..., list[Result]],
    inception_weights: Path,
    photographs: Path,
    crops: np.ndarray,
    tmp_path: Path,
) -> None:
    settings = f"evaluate.inception_weights={inception_weights}"
    by_image = "evaluate.metrics=['precision', 'recall', 'kid']"
    adm, kept = tmp_path / "adm.npz", tmp_path / "kept.npz"
    write_adm_file(adm, crops, inception_weights)
    expected = values(judged(by_image, settings, save_statistics=kept))
    for path in (photographs, adm, kept):
        results = judged(by_image, settings, f"evaluate.reference={path}")
        for metric, value in values(results).items():
            tolerance = 0.25 if metric == "kid" else 2e-3
            assert value == pytest.approx(expected[metric], rel=tolerance, abs=1e-4), (path, metric)
        assert results[0].reference == str(path)


@pytest.mark.slow
def test_what_statistics_alone_do_not_allow_is_left_out_or_refused(
    judged: Callable[..., list[Result]],
    built: Path,
    runs: Path,
    inception_weights: Path,
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    settings = (
        f"evaluate.inception_weights={inception_weights}",
        f"evaluate.reference={tmp_path / 'statistics.npz'}",
    )
    config = configured(built, runs, *settings)
    samples = drawn_into(tmp_path / "samples", config).samples.folder
    by_default = config.evaluate.model_copy(update={"metrics": None, "frechet_encoders": ()})
    results = judged_by(config.model_copy(update={"evaluate": by_default}), samples)
    assert [result.metric for result in results] == ["fid", "is"]
    assert results[0].reference_images is None
    assert "no floor: the reference has statistics alone" in results[0].remarks
    with pytest.raises(EvaluateError, match=r"statistics.npz does not allow precision, sfid"):
        judged(*settings, "evaluate.metrics=['sfid', 'precision']", "evaluate.frechet_encoders=[]")
    with pytest.raises(EvaluateError, match=r"statistics.npz does not allow fd_efficientnet"):
        judged(*settings)


def test_kept_statistics_of_another_network_are_refused(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    judged(save_statistics=tmp_path / "kept.npz")
    kept = f"evaluate.reference={tmp_path / 'kept.npz'}"
    other = ("encoders.efficientnet-lite0.input_size=96", "train.align=[]")
    with pytest.raises(ReferenceSetError, match=f"was made with another {FD}"):
        judged(*other, kept, run="plain")


def test_references_that_are_none_are_refused(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    with pytest.raises(ReferenceSetError, match=r"neither statistics \(mu, sigma\) nor images"):
        judged(f"evaluate.reference={tmp_path / 'x.npz'}")
    (tmp_path / "x.txt").write_text("no archive")
    with pytest.raises(NpzError, match="is no npz file"):
        judged(f"evaluate.reference={tmp_path / 'x.txt'}")
    write_images(tmp_path / "64.npz", iter(np.zeros((5, 64, 64, 3), np.uint8)), np.zeros(5, int))
    with pytest.raises(ReferenceSetError, match="of 64 px, but the samples have 32 px"):
        judged(f"evaluate.reference={tmp_path / '64.npz'}")


def test_samples_in_one_file_are_those_in_a_folder(
    judged: Callable[..., list[Result]], tmp_path: Path
) -> None:
    (expected,) = judged("sample.npz=true")
    assert judged(samples=tmp_path / "samples.npz") == [expected]
    # Away from their folder, what they were drawn from is not known.
    shutil.move(tmp_path / "samples.npz", tmp_path / "alone.npz")
    (alone,) = judged(samples=tmp_path / "alone.npz")
    assert alone.value == expected.value
    assert "whether the model was aligned to this encoder is not known" in alone.remarks


def test_images_are_taken_in_the_order_of_their_numbers(photographs: Path) -> None:
    names = [path.name for path in FolderImages(photographs, 1)._paths]
    assert names == [f"{number}.png" for number in range(21)]


def test_images_of_unequal_sides_are_no_samples_but_may_be_a_reference(
    photographs: Path, built: Path
) -> None:
    Image.new("RGB", (40, 32)).save(photographs / "7.png")
    with pytest.raises(ImageSetError, match=r"7\.png has 40 x 32 px, expected 32 x 32"):
        list(FolderImages(photographs, 2).batches(range(21), 8))
    cropped = FolderImages(built / "images", 2, side=32)
    assert sum(len(batch) for batch in cropped.batches(range(21), 8)) == 21
    (photographs / "3.png").write_bytes(b"torn")
    with pytest.raises(ImageSetError, match=r"3\.png cannot be decoded"):
        list(FolderImages(photographs, 2).batches(range(8), 8))
    with pytest.raises(ImageSetError, match="has no images"):
        FolderImages(built / "tiny.zarr", 1)


@pytest.mark.slow
def test_several_processes_measure_what_one_does(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
    write_images(tmp_path / "images.npz", iter(images), np.zeros(23, np.int64))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "3", str(TOOLS / "measuring.py")]
    command += [str(tmp_path / "images.npz"), str(tmp_path / "found")]
    root = str(ROOT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    subprocess.run(command, check=True, env=environment)
    features = images.transpose(0, 3, 1, 2).reshape(23, -1)[:, :5].astype(np.float32)
    for kept in (None, 7):
        found = torch.load(tmp_path / f"found.{kept}", weights_only=False)
        np.testing.assert_allclose(found["mean"], features.mean(0, dtype=np.float64))
        expected = np.cov(features.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(found["covariance"], expected)
        rows = features if kept is None else features[(np.arange(7) * 23 / 7).astype(int)]
        np.testing.assert_array_equal(found["rows"], rows)
