import numpy as np
import pytest
import scipy.linalg
import torch

from pipeline.report.metrics import direction
from stages.evaluate import metrics
from stages.evaluate.comparison import Comparison
from stages.evaluate.evaluate_settings import INCEPTION_METRICS, POOL, EvaluateSettings, Metric
from stages.evaluate.measure import Measured
from stages.evaluate.metrics import (
    Gaussian,
    RunningGaussian,
    fit_gaussian,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from stages.evaluate.reference import Reference

GENERATOR = np.random.default_rng(0)


def covariance(size: int) -> np.ndarray:
    factor = GENERATOR.normal(size=(size, size))
    return factor @ factor.T / size


def activations(images: int, size: int, shift: float = 0) -> torch.Tensor:
    """Non-negative and correlated, like those of Inception."""
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(1)) / size**0.5
    source = torch.Generator().manual_seed(images)
    return (torch.randn(images, size, generator=source) @ mix + shift).relu()


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


def test_it_is_that_of_torch_fidelity() -> None:
    from stages.vision import torch_fidelity

    sets = [activations(300, 24).numpy(), activations(200, 24, 0.3).numpy()]
    a, b = (fit_gaussian([features]) for features in sets)
    statistics = [{"mu": g.mean, "sigma": g.covariance} for g in (a, b)]
    metric = torch_fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(a, b) == pytest.approx(metric["frechet_inception_distance"], rel=1e-9)


def test_equal_sets_are_at_distance_zero_even_if_degenerate() -> None:
    features = fit_gaussian([GENERATOR.normal(size=(5, 12))])
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_sets_of_one_distribution_are_as_far_apart_as_theory_says() -> None:
    images, size = 4000, 64
    found = [
        frechet_distance(*(fit_gaussian([GENERATOR.normal(size=(images, size))]) for _ in "ab"))
        for _ in range(8)
    ]
    assert np.mean(found) == pytest.approx(size**2 / (2 * images) + 2 * size / images, rel=0.03)


def test_a_gaussian_fits_in_float64_without_bias() -> None:
    features = GENERATOR.normal(size=(50, 3)).astype(np.float16)
    fitted = fit_gaussian([features])
    assert fitted.mean.dtype == fitted.covariance.dtype == np.float64
    assert fitted.images == 50
    centred = features.astype(np.float64) - fitted.mean
    np.testing.assert_allclose(fitted.covariance, centred.T @ centred / 49)


def test_merged_statistics_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    features = 1000 + GENERATOR.normal(size=(501, 7))
    monkeypatch.setattr("stages.evaluate.metrics.SUMMED_ROWS", 70)
    ranks = [RunningGaussian() for _ in range(4)]
    for running, part in zip(ranks, np.array_split(features, 3), strict=False):
        for batch in np.array_split(part, 5):
            running.add(batch)
        running.finish()
    whole = RunningGaussian()
    for running in ranks:
        whole.merge(running)
    merged = whole.gaussian()
    assert merged.images == 501
    np.testing.assert_allclose(merged.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.covariance, np.cov(features, rowvar=False), rtol=1e-11)


def test_the_inception_score_is_its_definition_over_splits_in_order() -> None:
    logits = 3 * torch.randn(12_500, 10, generator=torch.Generator().manual_seed(0))
    scores = []
    for part in (logits[:5000], logits[5000:10_000], logits[10_000:]):
        probabilities = np.exp(part.double().numpy())
        probabilities /= probabilities.sum(1, keepdims=True)
        marginal = probabilities.mean(0)
        divergence = (probabilities * np.log(probabilities / marginal)).sum(1).mean()
        scores.append(np.exp(divergence))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


def test_precision_and_recall_are_their_definitions() -> None:
    samples, reference = activations(60, 6), activations(45, 6, 0.4)

    def share_within(points: torch.Tensor, manifold: torch.Tensor) -> float:
        radii = [np.sort([(m - n).norm() for n in manifold])[3] for m in manifold]
        inside = [
            any((p - m).norm() <= r for m, r in zip(manifold, radii, strict=True)) for p in points
        ]
        return float(np.mean(inside))

    found = precision_and_recall(samples, reference)
    assert found == pytest.approx(
        (share_within(samples, reference), share_within(reference, samples))
    )
    assert 0.2 < found[0] < 0.9
    assert found[0] != found[1]


def test_kid_is_the_unbiased_distance_of_a_cubic_kernel() -> None:
    samples, reference = activations(80, 12), activations(90, 12, 0.2)[:80]
    x, y = samples.double().numpy(), reference.double().numpy()

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 12 + 1) ** 3

    count = len(x)
    own = [k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y))]
    expected = sum(own) / (count * (count - 1)) - 2 * kernel(x, y).mean()
    # A subset of all images is all of them, in another order.
    value, deviation = kernel_distance(samples, reference)
    assert value == pytest.approx(expected, rel=1e-4)
    assert deviation < 1e-5


def test_equal_sets_have_all_precision_and_no_kernel_distance() -> None:
    features = activations(1500, 16)
    assert precision_and_recall(features, features) == (1, 1)
    # Without bias: two halves of one set.
    assert abs(kernel_distance(features[:750], features[750:])[0]) < 0.01


def test_a_metric_is_added_by_a_function_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(own: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
        return float(own.max()), float(other.max())

    monkeypatch.setattr(metrics, "largest", largest, raising=False)
    added = Metric(POOL, "largest", is_higher_better=True, has_floor=True)
    monkeypatch.setitem(INCEPTION_METRICS, "max", added)
    assert EvaluateSettings(metrics=("max",)).metrics == ("max",)
    assert direction("max") == "\N{UPWARDS ARROW}"
    own, other = activations(8, 4), activations(9, 4)
    comparison = Comparison(Reference("a", features=other), ["max"], {}, torch.device("cpu"))
    (result,) = comparison.of_inception(Measured({}, {POOL: own}), 8)
    assert (result.metric, result.value, result.deviation) == ("max", own.max(), other.max())
    assert (result.reference_images, result.floor) == (9, comparison.floors["max"])
