import numpy as np
import pytest
import scipy.linalg

from stages.sample.metrics import Gaussian, fit_gaussian, frechet_distance

GENERATOR = np.random.default_rng(0)


def covariance(size: int) -> np.ndarray:
    factor = GENERATOR.normal(size=(size, size))
    return factor @ factor.T / size


def test_a_shift_costs_its_square() -> None:
    a = Gaussian(np.zeros(3), np.eye(3))
    assert frechet_distance(a, Gaussian(np.array([1.0, 2, 0]), np.eye(3))) == pytest.approx(5)


def test_a_scale_costs_the_square_of_the_difference_of_deviations() -> None:
    a = Gaussian(np.zeros(4), 4 * np.eye(4))
    assert frechet_distance(a, Gaussian(np.zeros(4), 9 * np.eye(4))) == pytest.approx(4)


def test_it_is_the_formula_with_a_matrix_root() -> None:
    a, b = (Gaussian(GENERATOR.normal(size=6), covariance(6)) for _ in range(2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    shift = a.mean - b.mean
    expected = shift @ shift + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_equal_sets_are_at_distance_zero_even_if_degenerate() -> None:
    features = fit_gaussian(GENERATOR.normal(size=(5, 12)))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_a_gaussian_fits_in_float64_without_bias() -> None:
    features = GENERATOR.normal(size=(50, 3)).astype(np.float16)
    fitted = fit_gaussian(features)
    assert fitted.mean.dtype == fitted.covariance.dtype == np.float64
    centred = features.astype(np.float64) - fitted.mean
    np.testing.assert_allclose(fitted.covariance, centred.T @ centred / 49)
