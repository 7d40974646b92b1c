"""Metrics of samples, beside what real images and noise are measured at.

N samples, M images of the reference whose features are kept, D features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.evaluate import metrics
from stages.evaluate.evaluate_settings import INCEPTION_METRICS, Metric
from stages.evaluate.measure import Measured
from stages.evaluate.reference import Reference
from stages.evaluate.results import EvaluateError, Result

# Of the distance of random pixels. In the demo decoded noise, which is what an untrained model
# gives, is at 0.9 of it, samples after 250 steps are at 0.8, and those at the end at 0.4.
NEAR_NOISE = 0.75


@dataclass(frozen=True)
class Comparison:
    """What samples are compared with, and how.

    asked: names of metrics in the features of Inception; noise: the distances of random pixels,
    by features; device: to compute on.
    """

    reference: Reference
    asked: Sequence[str]
    noise: Mapping[str, float]
    device: torch.device

    def of_inception(self, found: Measured, images: int) -> Iterator[Result]:
        """The metrics of samples in the features of Inception. images: number of samples."""
        computed: dict[str, tuple[float, ...]] = {}
        for name in (one for one in INCEPTION_METRICS if one in self.asked):
            metric = INCEPTION_METRICS[name]
            if metric.function is None:
                yield self.frechet(name, metric.features, found, images)
                continue
            if metric.function not in computed:
                computed[metric.function] = self._compute(metric, found.rows[metric.features])
            value, deviation = metric.parts
            numbers = computed[metric.function]
            yield Result(
                name,
                numbers[value],
                None if deviation is None else numbers[deviation],
                images,
                self.reference.name if metric.is_compared else None,
                len(self._features) if metric.is_compared else None,
                floor=self.floors.get(name),
            )

    def _compute(self, metric: Metric, own: Tensor) -> tuple[float, ...]:
        """What the function of a metric makes of features, [N, D], of single images."""
        compared = [own, self._features] if metric.is_compared else [own]
        if metric.is_compared and min(map(len, compared)) <= metrics.NEIGHBOURS:
            raise EvaluateError(
                f"precision, recall and kid need more than {metrics.NEIGHBOURS} samples and "
                f"reference images, got {len(own)} and {len(self._features)}."
            )
        return metric.compute(
            *(one.to(self.device) if metric.on_device else one for one in compared)
        )

    @property
    def _features(self) -> Tensor:
        """Those of the reference's single images, [M, D]."""
        assert self.reference.features is not None, "features were asked for"
        return self.reference.features

    @cached_property
    def floors(self) -> dict[str, float]:
        """What one half of the reference's images is measured at against the other, by metric."""
        halves = self.reference.halves
        asked = {name: metric for name, metric in INCEPTION_METRICS.items() if name in self.asked}
        return {
            name: metric.compute(*halves)[metric.parts[0]]
            for name, metric in asked.items()
            if metric.has_floor and halves is not None
        }

    def frechet(
        self, name: str, features: str, found: Measured, images: int, remarks: Sequence[str] = ()
    ) -> Result:
        """The Frechet distance in some features. images: number of samples."""
        own, other = found.gaussians[features], self.reference.gaussians[features]
        size = len(own.mean)
        few = [
            f"fewer {whose} than the {size:,} features, which makes it too large"
            for whose, number in (("samples", own.images), ("reference images", other.images))
            if number is not None and number < size
        ]
        value, noise = metrics.frechet_distance(own, other), self.noise[features]
        floor = self.reference.floors.get(features, {}).get(images)
        is_near = value > NEAR_NOISE * noise
        near = [f"hardly better than noise, which is at {noise:.4g}"] if is_near else []
        return Result(
            *(name, value, None, images, self.reference.name, other.images),
            remarks=(*few, *self._on_floor(floor, features, images), *remarks, *near),
            floor=None if floor is None else floor.value,
            floor_images=None if floor is None else floor.images,
            noise=noise,
        )

    def _on_floor(self, floor: metrics.Floor | None, features: str, images: int) -> Iterator[str]:
        """What is to be said of the floor, or of there being none."""
        if floor is None:
            yield f"no floor: {self.reference.why_no_floor(features)}"
        elif floor.images < images:
            yield (
                f"the floor is that of {floor.images:,} real images, as the reference has no "
                "more to compare, and too high"
            )
