"""Evaluation: how far samples are from a reference, in features of Inception and of encoders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cache.recipe import Recipe, differences
from stages.encode.build_settings import EncodeSettings
from stages.encode.building.columns import load_features_maker
from stages.encode.network_settings import EncoderSettings
from stages.encode.networks.registry import EncoderError
from stages.evaluate.clip_score import ClipEmbeddings, clip_scores
from stages.evaluate.comparison import Comparison
from stages.evaluate.evaluate_settings import CLIP_SCORE, INCEPTION_METRICS, EvaluateSettings
from stages.evaluate.image_sets import FolderImages, ImageSet, NoiseImages, NpzFile, NpzImages
from stages.evaluate.measure import EncoderVectors, Measured, Network, Wanted, measure
from stages.evaluate.metrics import frechet_distance
from stages.evaluate.reference import Reference, check_networks, open_reference, save_reference
from stages.evaluate.results import (
    EvaluateError,
    Result,
    installed_versions,
    read_records,
    write_results,
)
from stages.placement import Placement
from stages.sample.sample_settings import SampleSettings
from stages.sample.samples import MANIFEST, Samples, read_manifest

# Features of noise hardly vary: with more of it, its distance would change by 2 %.
NOISE_IMAGES = 16


@dataclass(frozen=True)
class Networks:
    """What sees samples and reference.

    encoders: by their names in the registry; clip: sees samples alone, and their captions.
    """

    inception: Network | None
    encoders: Mapping[str, EncoderVectors]
    clip: ClipEmbeddings | None = None

    @property
    def all(self) -> list[Network]:
        """Every network."""
        single: list[Network | None] = [self.inception, self.clip]
        return [*(one for one in single if one is not None), *self.encoders.values()]

    def signed(self, result: Result) -> Result:
        """A result with what it was measured by."""
        by_name = {network.name: network for network in self.all}
        network = by_name.get(result.metric, self.inception)
        assert network is not None
        reference = result.reference
        return replace(
            result,
            reference=None if reference is None else str(Path(reference).absolute()),
            network=network.identity,
            weights_sha256=network.weights_sha256,
            versions=installed_versions(),
        )


@dataclass(frozen=True)
class Judged:
    """Samples to be judged.

    path: a folder, or a file in ADM's format; manifest: what they were drawn from and how, as far
    as it is known; captions: of each, if they were drawn of these.
    """

    path: Path
    images: ImageSet
    manifest: Mapping[str, Any]
    captions: Sequence[str] | None = None

    def drawn_otherwise(self, settings: SampleSettings, vae: str) -> list[str]:
        """How they were drawn otherwise than now configured, a line for each setting.

        vae: that decodes.
        """
        configured = {**settings.model_dump(mode="json"), "vae": vae}
        known = {
            name: value
            for name, value in configured.items()
            if name in self.manifest and value != "auto"
        }
        return differences({name: self.manifest[name] for name in known}, known, "drawn with")


def open_samples(path: Path, threads: int) -> Judged:
    """Open samples: a folder, of which its manifest says how many images there are, or a file.

    Raises EvaluateError if they are not there, or not all.
    """
    if not path.exists():
        raise EvaluateError(f"There is no {path}", remedy="Run `repa-cache sample` first.")
    if not path.is_dir():
        return Judged(path, NpzImages(NpzFile(path)), read_manifest(path.with_suffix("")) or {})
    manifest = read_manifest(path) or {}
    wanted = manifest.get("images")
    if wanted and (lacking := Samples(path, wanted).missing()):
        raise EvaluateError(
            f"{len(lacking)} of {wanted} images are missing",
            where=path,
            remedy=f"Run `repa-cache sample` once more with the settings in its {MANIFEST}, which "
            "draws these.",
        )
    images = FolderImages(path, threads, count=wanted)
    return Judged(path, images, manifest, Samples(path, len(images)).captions())


def evaluate(
    settings: EvaluateSettings,
    samples: Sequence[Judged],
    encode: EncodeSettings,
    place: Placement,
    save_statistics: Path | None = None,
) -> list[list[Result]]:
    """Compute the configured metrics of samples, and keep them beside each of these as JSON.

    The reference is measured once. Only rank 0 gets results, a list for each of the samples.
    save_statistics: a file to keep the reference's in. Raises EvaluateError if samples are of
    several sizes, or if the reference does not allow a metric, StaleCacheError if an encoder is
    not the one that filled the cache.
    """
    side, counts = _common_side(samples), {len(one.images) for one in samples}
    for one in samples:
        # What cannot be added to is said before anything is measured.
        read_records(one.path)
    networks = _load_networks(settings, encode, place)
    if not networks.all:
        return []
    encoders = list(networks.encoders.values())
    reference = open_reference(settings.reference, side, counts, encode, encoders, place)
    metrics = _possible(settings, reference, encoders)
    check_networks(reference, networks.all)
    measured = partial(measure, networks=networks.all, batch=settings.batch_size, place=place)
    of_reference, of_samples = _wanted(settings, metrics, encoders)
    if networks.clip is not None:
        _check_captions(samples)
        of_samples = replace(of_samples, rows={**of_samples.rows, CLIP_SCORE: None})
    reference = reference.completed(of_reference, counts, networks.all, settings.batch_size, place)
    if place.is_main and save_statistics is not None:
        save_reference(save_statistics, reference)
    of_noise = Wanted(of_reference.gaussians)
    random = measured("noise", NoiseImages(side, NOISE_IMAGES), wanted=of_noise).gaussians
    noise = {name: frechet_distance(random[name], reference.gaussians[name]) for name in random}
    comparison = Comparison(reference, metrics, noise, place.device)
    results = []
    for one in samples:
        title = "samples" if len(samples) == 1 else str(one.path)
        found = measured(title, one.images, wanted=of_samples)
        if place.is_main:
            own = [
                networks.signed(result)
                for result in _results(comparison, found, networks, one, encode)
            ]
            weights = {network.name: network.weights_sha256 for network in networks.all}
            write_results(one.path, own, one.manifest, weights)
            results.append(own)
    return results


def _check_captions(samples: Sequence[Judged]) -> None:
    """Raise EvaluateError for samples whose captions are not known."""
    for one in samples:
        if one.captions is None or len(one.captions) != len(one.images):
            raise EvaluateError(
                "the captions of its images are not known, which evaluate.clip_model needs",
                where=one.path,
                remedy="Leave it out, or judge samples of a model that reads captions.",
            )


def _common_side(samples: Sequence[Judged]) -> int:
    """The side of all samples in px. Raises EvaluateError if they have several."""
    sides = {one.images.side: one.path for one in samples}
    if len(sides) > 1:
        listed = ", ".join(f"{path} has {side} px" for side, path in sides.items())
        raise EvaluateError(f"Samples of one size are compared at a time, but {listed}.")
    return next(iter(sides))


def _load_networks(
    settings: EvaluateSettings, encode: EncodeSettings, place: Placement
) -> Networks:
    """Inception, if there may be a metric in its features, and the encoders."""
    inception = None
    if settings.metrics != ():
        from stages.evaluate.inception import Inception  # seconds: only where it is used

        inception = Inception(settings.inception_weights, place, settings.inception_input)
    encoders = {}
    for name in settings.frechet_encoders:
        # By its section in the configuration, if it has one.
        sections = {name: EncoderSettings(), **encode.encoders}
        maker = load_features_maker(
            encode.model_copy(update={"encoders": sections}), name, place.device
        )
        encoders[name] = EncoderVectors(name, maker)
    clip = None
    if settings.clip_model is not None:
        clip = ClipEmbeddings(settings.clip_model, place.device)
    return Networks(inception, encoders, clip)


def _possible(
    settings: EvaluateSettings, reference: Reference, encoders: Sequence[EncoderVectors]
) -> tuple[str, ...]:
    """The metrics of Inception that are asked for, by default all that the reference allows."""
    lacking = {vectors.name for vectors in encoders if not reference.has(vectors.name)}
    lacking |= {name for name, one in INCEPTION_METRICS.items() if not reference.allows(one)}
    metrics = settings.metrics
    if metrics is None:
        metrics = tuple(metric for metric in INCEPTION_METRICS if metric not in lacking)
    if refused := lacking.intersection([*metrics, *(vectors.name for vectors in encoders)]):
        raise EvaluateError(
            f"{reference.name} does not allow {', '.join(sorted(refused))}: it "
            "has neither the statistics for that nor images."
        )
    return metrics


def _wanted(
    settings: EvaluateSettings, metrics: Sequence[str], encoders: Sequence[EncoderVectors]
) -> tuple[Wanted, Wanted]:
    """What is needed of the reference's features, and of those of samples."""
    asked = [INCEPTION_METRICS[name] for name in metrics]
    gaussians = {metric.features for metric in asked if metric.function is None}
    frechet = frozenset(gaussians.union(vectors.name for vectors in encoders))
    compared = {m.features: settings.reference_features for m in asked if m.is_by_image}
    rows = dict.fromkeys(metric.features for metric in asked if metric.function is not None)
    return Wanted(frechet, compared), Wanted(frechet, rows)


def _results(
    comparison: Comparison,
    found: Measured,
    networks: Networks,
    samples: Judged,
    encode: EncodeSettings,
) -> Iterator[Result]:
    images = len(samples.images)
    yield from comparison.of_inception(found, images)
    if networks.clip is not None and samples.captions is not None:
        yield _clip_result(networks.clip, found, samples.captions)
    for vectors in networks.encoders.values():
        notes = _alignment(vectors.recipe, samples.manifest, encode)
        yield comparison.frechet(vectors.name, vectors.name, found, images, notes)


def _clip_result(clip: ClipEmbeddings, found: Measured, captions: Sequence[str]) -> Result:
    """The mean score of images with their captions, with its standard error."""
    distinct = list(dict.fromkeys(captions))
    place = {text: number for number, text in enumerate(distinct)}
    embedded = clip.of_captions(distinct)[[place[text] for text in captions]]
    scores = clip_scores(found.rows[CLIP_SCORE], embedded)
    error = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None
    return Result(CLIP_SCORE, float(scores.mean()), error, len(scores), None, None)


def _alignment(recipe: Recipe, manifest: Mapping[str, Any], encode: EncodeSettings) -> list[str]:
    """What is to be said of a model that was, or may have been, aligned to an encoder."""
    unknown = ["whether the model was aligned to this encoder is not known"]
    if (aligned := manifest.get("aligned_with")) is None:
        return unknown
    try:
        others = [encode.spec(name).recipe(0) for name in aligned]
    except EncoderError:
        return unknown
    fields = ("library", "model", "arguments")
    if any(all(other[field] == recipe[field] for field in fields) for other in others):
        return ["the model was aligned to this encoder"]
    return []
