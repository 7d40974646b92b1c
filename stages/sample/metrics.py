"""Metrics between sets of features, from their definitions.

N images, D features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of a set of features."""

    mean: Features
    covariance: Features


def fit_gaussian(features: npt.NDArray[np.floating]) -> Gaussian:
    """The mean and unbiased covariance of features [N, D], in float64."""
    values = features.astype(np.float64)
    return Gaussian(values.mean(axis=0), np.cov(values, rowvar=False))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    The trace of the root is that of the symmetric (A^(1/2) B A^(1/2))^(1/2), by eigenvalues.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(shift @ shift + traces - 2 * np.sqrt(product.clip(0)).sum())
