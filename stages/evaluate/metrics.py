"""Metrics between sets of features, [N, D] each, and the floor of a Frechet distance.

Few images make a distance too large, and no samples can be expected below their floor. The part
of the reference that stands for the samples is compared with the rest of it, as the samples are
with all of it; a second part as small as the first would err as much as that once more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

Values = npt.NDArray[np.float64]

# Images of a covariance.
FEWEST = 2
# Of ADM's evaluation.
SPLIT_IMAGES = 5_000
NEIGHBOURS = 3
# Of torch-fidelity, and of the paper of KID.
SUBSETS, SUBSET_IMAGES = 100, 1_000
# Features that are summed at once.
SUMMED_ROWS = 2_048
# Rows of the matrix of distances that are in memory at once.
DISTANCE_ROWS = 1_000


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and unbiased covariance [D, D] of features; images: how many, if it is known."""

    mean: Values
    covariance: Values
    images: int | None = None

    @cached_property
    def root(self) -> Values:
        """The symmetric root of the covariance, [D, D]."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Values = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        return root

    def without(self, part: "Gaussian") -> "Gaussian":
        """That of the images that are not in a part of them. There have to be two, and known."""
        assert self.images is not None
        assert part.images is not None
        rest = self.images - part.images
        mean = (self.images * self.mean - part.images * part.mean) / rest
        shift = part.mean - mean
        scatter = (self.images - 1) * self.covariance - (part.images - 1) * part.covariance
        scatter -= np.outer(shift, shift) * (part.images * rest / self.images)
        return Gaussian(mean, scatter / (rest - 1), rest)


class RunningGaussian:
    """Sums of which a Gaussian is made, in float64; merged sums are those of all images."""

    def __init__(self) -> None:
        self.images = 0
        self.mean: Values = np.zeros(0)
        self.scatter: Values = np.zeros((0, 0))
        self._waiting: list[npt.NDArray[np.floating]] = []

    def add(self, features: npt.NDArray[np.floating]) -> None:
        """Add features [N, D]."""
        if len(features):
            self._waiting.append(features)
        # The matrix is large: it is touched as seldom as memory allows.
        if sum(map(len, self._waiting)) >= SUMMED_ROWS:
            self.finish()

    def merge(self, other: "RunningGaussian") -> None:
        """Add the features that another one, which is finished, has seen."""
        if other.images:
            self._join(other.images, other.mean, other.scatter)

    def finish(self) -> None:
        """Bring `images`, `mean` [D] and `scatter` [D, D] up to date."""
        if self._waiting:
            values = np.concatenate(self._waiting).astype(np.float64)
            self._waiting = []
            mean = values.mean(axis=0)
            centred = values - mean
            self._join(len(values), mean, centred.T @ centred)

    def _join(self, images: int, mean: Values, scatter: Values) -> None:
        """Add images of a mean and a scatter around it (Chan, Golub & LeVeque 1979)."""
        if self.images == 0:
            self.images, self.mean, self.scatter = images, mean, scatter
            return
        total, shift = self.images + images, mean - self.mean
        self.scatter = self.scatter + scatter
        self.scatter += np.outer(shift, shift) * (self.images * images / total)
        self.mean = self.mean + shift * (images / total)
        self.images = total

    def gaussian(self) -> Gaussian:
        """That of all images. There have to be two."""
        self.finish()
        return Gaussian(self.mean, self.scatter / (self.images - 1), self.images)


def fit_gaussian(batches: Iterable[npt.NDArray[np.floating]]) -> Gaussian:
    """The Gaussian of features [N, D], which come in batches."""
    running = RunningGaussian()
    for features in batches:
        running.add(features)
    return running.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017, eq. 6).

    The trace of the root is that of the symmetric (B^(1/2) A B^(1/2))^(1/2), by eigenvalues; the
    root of B is computed once for many A.
    """
    product = np.linalg.eigvalsh(b.root @ a.covariance @ b.root)
    shift = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(shift @ shift + traces - 2 * np.sqrt(product.clip(0)).sum())


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the score (Salimans et al. 2016) over splits, in order.

    logits: [N, classes]; each 5,000 neighbours are a split, as in ADM's evaluation.
    """
    from stages.vision import torch_fidelity  # seconds: only where metrics are computed

    score = torch_fidelity.metric_isc.isc_features_to_metric
    scores = [
        score(part, splits=1, shuffle=False)["inception_score_mean"]
        for part in logits.split(SPLIT_IMAGES)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def precision_and_recall(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Shares of samples and of the reference within the other's manifold, k = 3.

    (Kynkäänniemi et al. 2019.) samples: [N, D], reference: [M, D]; on a device of their own
    choice. In memory are 1,000 rows of distances at once.
    """
    from stages.vision import torch_fidelity

    precision, recall = torch_fidelity.metric_prc.calculate_precision_recall_part(
        samples, reference, neighborhood=NEIGHBOURS, batch_size=DISTANCE_ROWS
    )
    return float(precision), float(recall)


def kernel_distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of KID (Binkowski et al. 2018) over 100 random subsets.

    samples: [N, D], reference: [M, D]. A subset has 1,000 images, or all where there are less.
    """
    from stages.vision import torch_fidelity

    found = torch_fidelity.metric_kid.kid_features_to_metric(
        samples,
        reference,
        kid_subsets=SUBSETS,
        kid_subset_size=min(SUBSET_IMAGES, len(samples), len(reference)),
        verbose=False,
    )
    return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]


@dataclass(frozen=True)
class Floor:
    """The distance of a part of a reference. images: in that part, at most those asked for."""

    value: float
    images: int


def part_size(samples: int, images: int, *, is_apart: bool) -> int | None:
    """How many of a number of images can stand for samples, or None if there are too few.

    is_apart: whether they are compared with the rest of these images, of which there are to be
    as many at least.
    """
    size = min(samples, images // 2 if is_apart else images)
    return size if size >= FEWEST else None


def floor_of(part: Gaussian, whole: Gaussian) -> Floor:
    """The floor by a part of a whole.

    Statistics that do not tell of how many images they are do not tell either whether the part
    is among these, and cannot be freed of it.
    """
    assert part.images is not None
    rest = whole if whole.images is None else whole.without(part)
    return Floor(frechet_distance(part, rest), part.images)
