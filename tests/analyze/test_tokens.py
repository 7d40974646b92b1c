import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stages.analyze.tokens import (
    as_colours,
    embedded_directions,
    principal_components,
    psnr,
    relative_errors,
    similarities,
)


@pytest.fixture
def tokens() -> Tensor:
    """Of 3 images with 16 tokens of 10 features, no two of which vary alike."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, 11)
    return torch.randn((3, 16, 10), generator=generator) * spread + 5


def test_components_are_those_of_a_singular_value_decomposition(tokens: Tensor) -> None:
    components, shares = principal_components(tokens, 3)
    points = tokens.flatten(0, 1).double()
    left, values, right = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    expected = (left * values)[:, :3]
    torch.testing.assert_close(components.flatten(0, 1).abs(), expected.abs())
    torch.testing.assert_close(shares, values[:3] ** 2 / values.square().sum())
    assert right.shape == (10, 10)


def test_the_sign_of_a_component_does_not_depend_on_that_of_the_tokens_order(
    tokens: Tensor,
) -> None:
    components, _ = principal_components(tokens, 3)
    turned, _ = principal_components(tokens.flip(0, 1), 3)
    torch.testing.assert_close(turned.flip(0, 1), components)
    # Mirrored tokens have mirrored components: the loadings keep their signs.
    mirrored, _ = principal_components(-tokens, 3)
    torch.testing.assert_close(mirrored, -components)


def test_colours_are_stretched_over_all_images_and_outliers_do_not_dim_them() -> None:
    components = torch.linspace(0, 1, 900, dtype=torch.float64).reshape(3, 100, 3).clone()
    plain = as_colours(components)
    assert plain.min() == 0
    assert plain.max() == 1
    components[0, 0, 0] = 1000
    torch.testing.assert_close(as_colours(components)[1:], plain[1:], atol=0.01, rtol=0)


def test_similarities_are_cosines_with_one_token_of_the_same_image(tokens: Tensor) -> None:
    found = similarities(tokens, 5)
    assert found.shape == (3, 16)
    for image in range(3):
        for token in range(16):
            expected = cosine_similarity(tokens[image, token], tokens[image, 5], dim=0)
            torch.testing.assert_close(found[image, token], expected)


def test_directions_in_all_dimensions_have_exactly_the_cosines(tokens: Tensor) -> None:
    every = tokens.flatten(0, 1).double()
    cosines = cosine_similarity(every[:, None], every[None], dim=-1)
    directions = embedded_directions(tokens, 64).flatten(0, 1)
    assert directions.shape == (48, 10)
    torch.testing.assert_close(directions @ directions.T, cosines)


def test_directions_in_few_dimensions_lose_no_more_than_they_have_to(tokens: Tensor) -> None:
    every = tokens.flatten(0, 1).double()
    cosines = cosine_similarity(every[:, None], every[None], dim=-1)
    directions = embedded_directions(tokens, 4).flatten(0, 1)
    lost = (directions @ directions.T - cosines).square().sum()
    # Eckart and Young: the squares of the eigenvalues that are left out.
    torch.testing.assert_close(lost, torch.linalg.eigvalsh(cosines)[:-4].square().sum())


def test_errors_are_relative_to_the_norm_of_the_fresh_token(tokens: Tensor) -> None:
    torch.testing.assert_close(relative_errors(1.25 * tokens, tokens), torch.full((3, 16), 0.25))
    assert relative_errors(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0


def test_psnr_is_that_of_scikit_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 8, 8), dtype=np.uint8)
    found = psnr(*map(torch.from_numpy, images))
    expected = [peak_signal_noise_ratio(*pair) for pair in zip(*images, strict=True)]
    np.testing.assert_allclose(found, expected)
