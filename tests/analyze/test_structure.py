from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cache import ROWS, make_cache, values
from torch import Tensor
from torch.nn.functional import normalize

from cache.reader import Cache
from stages.analyze.tokens import (
    by_distance,
    distances,
    effective_rank,
    local_against_distant,
    measure_structure,
    outlier_share,
    spatial_contrast,
)
from stages.evaluate.metrics import fit_gaussian

CPU = torch.device("cpu")


def plain_lds(tokens: Tensor, side: int) -> float:
    """iREPA's definition (section 3), pair by pair, for one image's tokens [T, D]."""
    near, far = [], []
    for one in range(side**2):
        for other in range(side**2):
            apart = abs(one // side - other // side) + abs(one % side - other % side)
            cosine = float(torch.cosine_similarity(tokens[one], tokens[other], dim=0))
            if 0 < apart < side / 2:
                near.append(cosine)
            if apart >= side / 2:
                far.append(cosine)
    return sum(near) / len(near) - sum(far) / len(far)


def test_a_cached_encoder_is_measured_as_by_the_definitions(tmp_path: Path) -> None:
    column = make_cache(tmp_path / "tiny.zarr")
    reader = Cache(tmp_path / "tiny.zarr").column(column.name)
    tokens = torch.from_numpy(values(column.array("tokens"))).float()
    found = measure_structure(reader, np.arange(ROWS), CPU)
    plain = [plain_lds(image, 4) for image in tokens]
    assert found.lds == pytest.approx(sum(plain) / ROWS, abs=1e-6)
    unit = normalize(tokens, dim=2)
    spread = (unit - unit.mean(dim=1, keepdim=True)).norm(dim=2).square().mean(dim=1).sqrt()
    assert found.contrast == pytest.approx(float(spread.mean()), abs=1e-6)
    eigenvalues = torch.linalg.eigvalsh(tokens.flatten(0, 1).double().T.cov())
    rank = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert found.effective_rank == pytest.approx(rank, rel=1e-6)
    falls = found.decay - np.mean(found.decay)
    distance = np.arange(6) - 2.5
    assert found.cds == pytest.approx(-float(falls @ distance / (distance @ distance)))
    assert (found.outliers, found.images, len(found.decay)) == (0, ROWS, 6)


def test_distances_are_those_of_a_walk_along_the_grid() -> None:
    assert distances(2).tolist() == [[0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 0, 1], [2, 1, 1, 0]]


def test_tokens_that_fade_with_distance_have_structure_and_shuffled_ones_none() -> None:
    side = 8
    fading = torch.exp(-torch.from_numpy(distances(side)).double() / 3)
    order = torch.randperm(side**2, generator=torch.Generator().manual_seed(0))
    assert local_against_distant(fading) > 0.2
    assert abs(local_against_distant(fading[order][:, order])) < 0.05
    np.testing.assert_allclose(by_distance(fading), np.exp(-np.arange(1, 2 * side - 1) / 3))


def test_contrast_is_none_for_equal_tokens_and_one_for_opposite_ones() -> None:
    equal = normalize(torch.ones(1, 4, 6), dim=2)
    opposite = equal * torch.tensor([1, -1, 1, -1])[None, :, None]
    assert float(spatial_contrast(equal)) == pytest.approx(0, abs=1e-6)
    assert float(spatial_contrast(opposite)) == pytest.approx(1)


@pytest.mark.parametrize("dimensions", [1, 3, 20])
def test_the_effective_rank_counts_dimensions(dimensions: int) -> None:
    values = np.random.default_rng(0).normal(size=(50_000, 20))
    values[:, dimensions:] = 0
    assert effective_rank(fit_gaussian([values])) == pytest.approx(dimensions, rel=0.01)


def test_equal_tokens_have_no_rank() -> None:
    assert effective_rank(fit_gaussian([np.ones((10, 3))])) == 0


def test_outliers_are_much_longer_than_most() -> None:
    lengths = torch.ones(10, 16)
    lengths[0, 0], lengths[3, 5], lengths[4, 4] = 3.5, 30, 2.5
    assert outlier_share(lengths) == 2 / 160
