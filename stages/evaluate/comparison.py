"""Metrics of samples, beside what real images and noise are measured at.

Few images make a distance too large, and no samples can be expected below their floor. The part
of the reference that stands for the samples is compared with the rest of it, as the samples are
with all of it; a second part as small as the first would err as much as that once more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from stages.evaluate.measure import Measured
from stages.evaluate.metrics import (
    LOGITS,
    NEIGHBOURS,
    POOL,
    SPATIAL,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from stages.evaluate.reference import Reference
from stages.evaluate.results import EvaluateError, Result

# Metrics between Gaussians, and the features that they are of.
FRECHET = {"fid": POOL, "sfid": SPATIAL}
# Metrics that need features of single images of the reference.
BY_IMAGE = frozenset({"precision", "recall", "kid"})
# Of the distance of random pixels. In the demo decoded noise, which is what an untrained model
# gives, is at 0.9 of it, samples after 250 steps are at 0.8, and those at the end at 0.4.
NEAR_NOISE = 0.75


@dataclass(frozen=True)
class Comparison:
    """What was measured of samples, and what they are compared with.

    images: number of samples; noise: the distances of random pixels, by features; device: to
    compute on.
    """

    found: Measured
    reference: Reference
    images: int
    noise: Mapping[str, float]
    device: torch.device

    def of_inception(self, metrics: Sequence[str]) -> Iterator[Result]:
        """The metrics in the features of Inception."""
        for metric in (m for m in metrics if m in FRECHET):
            yield self.frechet(metric, FRECHET[metric], [])
        if "is" in metrics:
            score, deviation = inception_score(self.found.rows[LOGITS])
            yield Result("is", score, deviation, self.images, None, None)
        if BY_IMAGE.intersection(metrics):
            yield from self._by_image(metrics)

    def frechet(self, metric: str, features: str, remarks: Sequence[str]) -> Result:
        """The Frechet distance in some features."""
        own, other = self.found.gaussians[features], self.reference.gaussians[features]
        size = len(own.mean)
        few = [
            f"fewer {whose} than the {size:,} features, which makes it too large"
            for whose, images in (("samples", own.images), ("reference images", other.images))
            if images is not None and images < size
        ]
        value, noise = frechet_distance(own, other), self.noise[features]
        floor = self.reference.floors.get(features, {}).get(self.images)
        is_near = value > NEAR_NOISE * noise
        near = [f"hardly better than noise, which is at {noise:.4g}"] if is_near else []
        return Result(
            *(metric, value, None, self.images, self.reference.name, other.images),
            remarks=(*few, *self._on_floor(features), *remarks, *near),
            floor=None if floor is None else floor.value,
            floor_images=None if floor is None else floor.images,
            noise=noise,
        )

    def _on_floor(self, features: str) -> Iterator[str]:
        """What is to be said of the floor, or of there being none."""
        known = self.reference.floors.get(features, {})
        floor = known.get(self.images)
        if floor is None:
            yield f"no floor: {self.reference.why_no_floor(features)}"
        elif floor.images < self.images:
            yield (
                f"the floor is that of {floor.images:,} real images, as the reference has no "
                "more to compare, and too high"
            )

    def _by_image(self, metrics: Sequence[str]) -> Iterator[Result]:
        own, other = self.found.rows[POOL], self.reference.features
        assert other is not None, "features were asked for"
        if min(len(own), len(other)) <= NEIGHBOURS:
            raise EvaluateError(
                f"precision, recall and kid need more than {NEIGHBOURS} samples and reference "
                f"images, got {len(own)} and {len(other)}."
            )
        named = self.reference.name, len(other)
        if {"precision", "recall"}.intersection(metrics):
            both = precision_and_recall(own.to(self.device), other.to(self.device))
            for metric, value in zip(("precision", "recall"), both, strict=True):
                if metric in metrics:
                    yield Result(metric, value, None, self.images, *named)
        if "kid" in metrics:
            floor = self.reference.kernel_floor
            found = kernel_distance(own, other)
            yield Result("kid", *found, self.images, *named, floor=floor)
