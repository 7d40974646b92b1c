"""What real images are measured at, beside what samples are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.order import permutation
from cache.reader import Cache
from pipeline.config import Config
from stages.encode.build_settings import EncodeSettings
from stages.evaluate.comparison import Comparison
from stages.evaluate.evaluate_settings import POOL
from stages.evaluate.image_sets import write_images
from stages.evaluate.measure import PART_SEED, Wanted
from stages.evaluate.metrics import fit_gaussian, frechet_distance, kernel_distance, part_size
from stages.evaluate.reference import Reference, open_reference, save_reference
from stages.placement import Placement

CPU = Placement(torch.device("cpu"))
IMAGES = 40


class FirstPixels:
    """Features that are pixels, called those of Inception's pool."""

    name = "inception"
    features: tuple[str, ...] = (POOL,)
    identity = weights_sha256 = "none"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {POOL: images.flatten(1)[:, :5].float()}


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def encode(tiny: Callable[..., Config]) -> EncodeSettings:
    return tiny().encode


def features_of(pixels: np.ndarray) -> np.ndarray:
    return FirstPixels()(torch.from_numpy(pixels).permute(0, 3, 1, 2))[POOL].numpy()


def opened(path: Path, encode: EncodeSettings, *counts: int, rows: int | None = None) -> Reference:
    """A reference with all that is to be known of it for so many samples."""
    reference = open_reference(path, 4, counts, encode, [], CPU)
    kept = {} if rows is None else {POOL: rows}
    return reference.completed(Wanted(frozenset({POOL}), kept), counts, [FirstPixels()], 7, CPU)


def kid_floors(reference: Reference) -> dict[str, float]:
    return Comparison(reference, ["kid"], {}, CPU.device).floors


def expected_floor(features: np.ndarray, count: int) -> float:
    """The distance of so many random images to all others."""
    order = permutation(len(features), PART_SEED)
    part, rest = (fit_gaussian([features[rows]]) for rows in (order[:count], order[count:]))
    return frechet_distance(part, rest)


def test_the_rest_of_a_set_is_that_without_a_part() -> None:
    features = np.random.default_rng(1).normal(3, 2, (50, 6))
    rest = fit_gaussian([features]).without(fit_gaussian([features[:20]]))
    expected = fit_gaussian([features[20:]])
    assert rest.images == 30
    np.testing.assert_allclose(rest.mean, expected.mean)
    np.testing.assert_allclose(rest.covariance, expected.covariance)


@pytest.mark.parametrize(
    ("samples", "images", "is_apart", "size"),
    [
        (6, 21, True, 6),
        (50, 21, True, 10),
        (50, 21, False, 21),
        (1, 21, True, None),
        (6, 3, True, None),
        (6, 1, False, None),
    ],
)
def test_as_many_images_stand_for_samples_as_leave_as_many_to_compare(
    samples: int, images: int, is_apart: bool, size: int | None
) -> None:
    assert part_size(samples, images, is_apart=is_apart) == size


def test_the_floor_is_the_distance_of_as_many_real_images_to_the_others(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    write_images(tmp_path / "images.npz", iter(pixels), np.zeros(IMAGES, np.int64))
    floors = opened(tmp_path / "images.npz", encode, 8, 15, 1000).floors[POOL]
    features = features_of(pixels)
    for count, images in ((8, 8), (15, 15), (1000, 20)):
        assert floors[count].images == images
        assert floors[count].value == pytest.approx(expected_floor(features, images))
    assert floors[8].value > floors[15].value > 0


def test_statistics_with_images_are_what_these_are_compared_with(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    statistics = {"mu": np.full(5, 120.0), "sigma": 5000 * np.eye(5)}
    np.savez(tmp_path / "adm.npz", arr_0=pixels, **statistics)
    reference = opened(tmp_path / "adm.npz", encode, 8, 1000)
    drawn = features_of(pixels)[permutation(IMAGES, PART_SEED)[:8]]
    floor = reference.floors[POOL][8]
    expected = frechet_distance(fit_gaussian([drawn]), reference.gaussians[POOL])
    assert (floor.images, floor.value) == (8, pytest.approx(expected))
    assert reference.floors[POOL][1000].images == IMAGES


def test_statistics_alone_have_no_floor_and_say_so(encode: EncodeSettings, tmp_path: Path) -> None:
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(5), sigma=np.eye(5))
    reference = opened(tmp_path / "statistics.npz", encode, 8)
    assert reference.floors == {}
    assert reference.why_no_floor(POOL) == "the reference has statistics alone"


def test_floors_are_kept_with_the_statistics(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    images, kept = tmp_path / "images.npz", tmp_path / "kept.npz"
    write_images(images, iter(pixels), np.zeros(IMAGES, np.int64))
    measured = opened(images, encode, 8)
    save_reference(kept, measured)
    again = opened(kept, encode, 8, 9)
    assert again.floors == measured.floors
    assert again.why_no_floor(POOL) == "the reference has kept that of 8 images only"


def test_features_that_are_kept_give_the_floor_of_any_number(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    images, kept = tmp_path / "images.npz", tmp_path / "kept.npz"
    write_images(images, iter(pixels), np.zeros(IMAGES, np.int64))
    save_reference(kept, opened(images, encode, 8, rows=IMAGES))
    floors = opened(kept, encode, 8, 15, 1000, rows=IMAGES).floors[POOL]
    assert floors[15].value == pytest.approx(expected_floor(features_of(pixels), 15))
    assert floors[1000].images == IMAGES // 2


def test_statistics_of_earlier_versions_have_no_floors(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    gaussian = fit_gaussian([features_of(pixels)])
    about = np.array(json.dumps({"images": {POOL: IMAGES}, "networks": {"inception": "none"}}))
    np.savez(tmp_path / "old.npz", about=about, mu=gaussian.mean, sigma=gaussian.covariance)
    reference = opened(tmp_path / "old.npz", encode, 8)
    assert reference.floors == {}
    assert reference.gaussians[POOL].images == IMAGES


def test_the_floor_of_kid_is_that_of_two_halves(
    pixels: np.ndarray, encode: EncodeSettings, tmp_path: Path
) -> None:
    write_images(tmp_path / "images.npz", iter(pixels), np.zeros(IMAGES, np.int64))
    reference = opened(tmp_path / "images.npz", encode, 8, rows=IMAGES)
    order = permutation(IMAGES, PART_SEED)
    halves = (torch.from_numpy(features_of(pixels)[half]) for half in (order[:20], order[20:]))
    assert kid_floors(reference) == {"kid": kernel_distance(*halves)[0]}
    assert kid_floors(opened(tmp_path / "images.npz", encode, 8)) == {}


def test_the_floor_of_a_cached_encoder_comes_from_the_cache_alone(
    built: Path, trainable: Callable[..., Config]
) -> None:
    from stages.evaluate.evaluate import _load_networks

    config = trainable()
    (vectors,) = _load_networks(config.evaluate, config.encode, CPU).encoders.values()
    reference = open_reference(None, 32, {6}, config.encode, [vectors], CPU)
    wanted = Wanted(frozenset({vectors.name}))
    # No network is there to look at images.
    floor = reference.completed(wanted, {6}, [], 7, CPU).floors[vectors.name][6]
    stored = Cache(built / "tiny.zarr").column("features/efficientnet-lite0")
    assert floor.images == 6
    assert floor.value == pytest.approx(expected_floor(stored.vectors(np.arange(21)), 6))
