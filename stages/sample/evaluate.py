"""Evaluation: how far samples are from a reference, in features of Inception and of encoders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import RepaCacheError
from stages.encode.columns import load_features_maker
from stages.encode.encoders import find_encoder
from stages.encode.settings import EncoderSettings, EncodeSettings
from stages.placement import Placement
from stages.sample.image_sets import FolderImages, ImageSet, NpzImages
from stages.sample.measure import EncoderVectors, Measured, Network, Wanted, measure
from stages.sample.metrics import (
    LOGITS,
    NEIGHBOURS,
    POOL,
    SPATIAL,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_and_recall,
)
from stages.sample.npz import NpzFile
from stages.sample.options import EvaluateOptions
from stages.sample.reference import Reference, check_networks, open_reference, save_reference
from stages.sample.results import Result, write_results
from stages.sample.samples import Samples, read_manifest
from stages.sample.settings import INCEPTION_METRICS, EvaluateSettings

# Metrics between Gaussians, and the features that they are of.
FRECHET = {"fid": POOL, "sfid": SPATIAL}
# Metrics that need features of single images of the reference.
BY_IMAGE = frozenset({"precision", "recall", "kid"})


class EvaluateError(RepaCacheError):
    """There is nothing to evaluate, or not by these metrics."""


@dataclass(frozen=True)
class Judged:
    """Samples to be judged.

    path: a folder, or a file in ADM's format; manifest: what they were drawn from and how, as far
    as it is known.
    """

    path: Path
    images: ImageSet
    manifest: Mapping[str, Any]


def open_samples(path: Path, expected: int | None, threads: int) -> Judged:
    """Open samples. expected: how many there have to be, if they are numbered.

    Raises EvaluateError if there are fewer.
    """
    if not path.exists():
        raise EvaluateError(f"There is no {path}. Run `repa-cache sample` first.")
    if not path.is_dir():
        return Judged(path, NpzImages(NpzFile(path)), read_manifest(path.with_suffix("")) or {})
    manifest = read_manifest(path) or {}
    wanted = expected or manifest.get("images")
    if wanted and (lacking := Samples(path, wanted).missing()):
        raise EvaluateError(
            f"{path} lacks {len(lacking)} of {wanted} images. Run `repa-cache sample` first."
        )
    return Judged(path, FolderImages(path, threads, count=expected), manifest)


def evaluate(
    settings: EvaluateSettings,
    options: EvaluateOptions,
    samples: Judged,
    encode: EncodeSettings,
    place: Placement,
) -> list[Result]:
    """Compute the configured metrics, and keep them beside the samples as JSON.

    Only rank 0 gets results. Raises EvaluateError if the reference does not allow a metric,
    StaleCacheError if an encoder is not the one that filled the cache.
    """
    encoders = [_vectors(name, encode, place) for name in settings.frechet_encoders]
    networks: list[Network] = [*_inception(settings, place), *encoders]
    if not networks:
        return []
    reference = open_reference(settings.reference, samples.images.side, encode, encoders, place)
    metrics = _possible(settings, reference, encoders)
    check_networks(reference, networks)
    frechet = {FRECHET[m] for m in metrics if m in FRECHET} | {e.name for e in encoders}
    by_image = [POOL] if BY_IMAGE.intersection(metrics) else []
    logits = [LOGITS] if "is" in metrics else []
    batch = settings.batch_size
    kept = dict.fromkeys(by_image, settings.reference_features)
    reference = reference.completed(Wanted(frozenset(frechet), kept), networks, batch, place)
    if place.is_main and options.save_statistics is not None:
        save_reference(options.save_statistics, reference)
    wanted = Wanted(frozenset(frechet), dict.fromkeys([*by_image, *logits]))
    found = measure("samples", samples.images, networks, wanted, batch, place)
    if not place.is_main:
        return []
    comparison = Comparison(found, reference, len(samples.images), place)
    results = [
        *comparison.of_inception(metrics),
        *(
            comparison.frechet(e.name, e.name, _alignment(name, samples.manifest))
            for name, e in zip(settings.frechet_encoders, encoders, strict=True)
        ),
    ]
    weights = {network.name: network.weights_sha256 for network in networks}
    write_results(samples.path, results, samples.manifest, weights)
    return results


def _possible(
    settings: EvaluateSettings, reference: Reference, encoders: Sequence[EncoderVectors]
) -> tuple[str, ...]:
    """The metrics of Inception that are asked for, by default all that the reference allows."""
    frechet = FRECHET | {vectors.name: vectors.name for vectors in encoders}
    lacking = {metric for metric, features in frechet.items() if not reference.has(features)}
    if not reference.has_features:
        lacking |= BY_IMAGE
    metrics = settings.metrics
    if metrics is None:
        metrics = tuple(metric for metric in INCEPTION_METRICS if metric not in lacking)
    if refused := lacking.intersection([*metrics, *(vectors.name for vectors in encoders)]):
        raise EvaluateError(
            f"{reference.name} does not allow {', '.join(sorted(refused))}: it "
            "has neither the statistics for that nor images."
        )
    return metrics


def _inception(settings: EvaluateSettings, place: Placement) -> list[Network]:
    """Inception, if there may be a metric in its features."""
    if settings.metrics == ():
        return []
    from stages.sample.inception import Inception  # seconds: only where it is used

    return [Inception(settings.inception_weights, place)]


def _vectors(encoder: str, encode: EncodeSettings, place: Placement) -> EncoderVectors:
    """An encoder's vectors, by its section in the configuration if it has one."""
    sections = {encoder: EncoderSettings(), **encode.encoders}
    settings = encode.model_copy(update={"encoders": sections})
    return EncoderVectors(encoder, load_features_maker(settings, encoder, place.device))


def _alignment(encoder: str, manifest: Mapping[str, Any]) -> list[str]:
    """What is to be said of a model that was, or may have been, aligned to an encoder."""
    if (aligned := manifest.get("aligned_with")) is None:
        return ["whether the model was aligned to this encoder is not known"]
    network = find_encoder(encoder).timm_model
    if any(find_encoder(name).timm_model == network for name in aligned):
        return ["the model was aligned to this encoder"]
    return []


@dataclass(frozen=True)
class Comparison:
    """What was measured of samples, and what they are compared with.

    images: number of samples.
    """

    found: Measured
    reference: Reference
    images: int
    place: Placement

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
        value, name = frechet_distance(own, other), self.reference.name
        return Result(
            metric, value, None, self.images, name, other.images, remarks=(*few, *remarks)
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
            device = self.place.device
            both = precision_and_recall(own.to(device), other.to(device))
            for metric, value in zip(("precision", "recall"), both, strict=True):
                if metric in metrics:
                    yield Result(metric, value, None, self.images, *named)
        if "kid" in metrics:
            yield Result("kid", *kernel_distance(own, other), self.images, *named)
