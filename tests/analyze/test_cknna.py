import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peak import peak_bytes
from torch import Tensor

from stages.analyze.analysis_options import AlignmentOptions, AnalysisError
from stages.analyze.neighbours import cknna, find_neighbours, pooled_neighbours


def random(images: int, features: int, seed: int = 0, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, features, generator=generator) + mean


def plain_cknna(one: Tensor, other: Tensor, k: int) -> float:
    """REPA's eq. 22 to 24, of matrices of all images against all, in float64."""
    kernels, centred, masks = [], [], []
    for features in (one.double(), other.double()):
        kernel = features @ features.T
        ranked = kernel.clone().fill_diagonal_(-torch.inf).topk(k).indices
        kernels.append(kernel)
        centred.append(kernel - kernel.mean(dim=1, keepdim=True))
        masks.append(torch.zeros_like(kernel).scatter_(1, ranked, 1.0))
    mutual = masks[0] * masks[1]
    cross = (mutual * centred[0] * centred[1]).sum()
    own = [(mask * kernel**2).sum() for mask, kernel in zip(masks, centred, strict=True)]
    return float(cross / (own[0] * own[1]).sqrt())


def fast_cknna(one: Tensor, other: Tensor, k: int, chunk: int = 7) -> float:
    return cknna(find_neighbours(one, k, chunk), find_neighbours(other, k, chunk))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(3, 60),
    features=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0.01, 1),
    chunk=st.integers(1, 70),
    mean=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_plain_one_for_any_shapes_and_chunks(
    images: int, features: tuple[int, int], share: float, chunk: int, mean: float, seed: int
) -> None:
    k = max(1, round(share * (images - 1)))
    one, other = random(images, features[0], seed, mean), random(images, features[1], seed + 1)
    other[:, 0] += one[:, 0]
    fast = fast_cknna(one, other, k, chunk)
    assert fast == pytest.approx(plain_cknna(one, other, k), abs=2e-4)


def test_equal_features_have_one() -> None:
    features = random(200, 30, mean=3)
    assert fast_cknna(features, features, 10) == pytest.approx(1, abs=1e-6)


def test_independent_features_have_about_the_share_of_neighbours() -> None:
    found = fast_cknna(random(2000, 40), random(2000, 40, seed=1), 10, 512)
    assert 0 < found < 4 * 10 / 2000


def test_more_noise_is_less_alike() -> None:
    features = random(500, 16)
    noisy = [features + scale * random(500, 16, seed=2) for scale in (0, 0.3, 1, 3)]
    found = [fast_cknna(features, other, 10) for other in noisy]
    assert found == sorted(found, reverse=True)


def test_scale_rotation_and_the_order_of_images_do_not_matter() -> None:
    one, other = random(300, 20, mean=1), random(300, 12, seed=1)
    other[:, :5] += one[:, :5]
    expected = fast_cknna(one, other, 10)
    rotation = torch.linalg.qr(random(20, 20, seed=5)).Q
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert fast_cknna(1e4 * one @ rotation, 1e-4 * other, 10) == pytest.approx(expected, rel=1e-3)
    assert fast_cknna(one[order], other[order], 10) == pytest.approx(expected, rel=1e-5)
    assert fast_cknna(other, one, 10) == pytest.approx(expected, rel=1e-12)


def test_features_far_from_zero_lose_no_precision() -> None:
    one, other = random(200, 10), random(200, 10)
    other[:, :3] += random(200, 3, seed=1)
    far = torch.cat([one, torch.full((200, 1), 300.0)], dim=1)
    assert fast_cknna(far, other, 10) == pytest.approx(fast_cknna(one, other, 10), abs=1e-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_features_that_are_all_equal_have_zero(constant: float) -> None:
    features = random(50, 8)
    equal = torch.full((50, 8), constant)
    for one, other in ((equal, features), (features, equal), (equal, equal)):
        assert fast_cknna(one, other, 5) == 0


def test_duplicates_are_neighbours_like_others() -> None:
    features = random(20, 8).repeat(4, 1)
    found = fast_cknna(features, features, 10)
    assert found == pytest.approx(1, abs=1e-6)
    assert math.isfinite(fast_cknna(features, random(80, 3, seed=1), 10))


def test_by_default_the_length_of_features_does_not_matter() -> None:
    features = random(100, 8)
    longer = features * torch.linspace(0.1, 30, 100)[:, None]
    unit, raw = (
        [pooled_neighbours(f, AlignmentOptions(5, is_raw)) for f in (features, longer)]
        for is_raw in (False, True)
    )
    assert cknna(*unit) == pytest.approx(1, abs=1e-5)
    assert cknna(*raw) < 0.6


def test_too_few_images_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(AnalysisError, match=r"10 neighbours were asked for among 10 images"):
        find_neighbours(random(10, 4), 10)
    features = random(20, 4)
    features[3, 2] = torch.inf
    with pytest.raises(AnalysisError, match="infinite or not a number"):
        find_neighbours(features, 5)


@pytest.mark.slow
def test_ten_thousand_images_need_no_matrix_of_all_against_all() -> None:
    prepare = (
        "import torch; from stages.analyze.neighbours import *\n"
        "features = [torch.randn(10_000, 1152, generator=torch.Generator().manual_seed(s))\n"
        "    for s in (0, 1)]; cknna(find_neighbours(features[0][:2000], 10),\n"
        "    find_neighbours(features[1][:2000], 10))"
    )
    work = (
        "one, other = (find_neighbours(f, 10) for f in features)\n"
        "assert abs(cknna(one, one) - 1) < 1e-6; assert 0 < cknna(one, other) < 0.003"
    )
    # Features once more, and some rows of the kernel: two such matrices would be 800 MB.
    assert peak_bytes(prepare, work) < 220e6
