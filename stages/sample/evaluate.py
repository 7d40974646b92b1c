"""Evaluation: how far samples are from the cached data set, in an encoder's features."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cache.errors import RepaCacheError
from cache.files import write_atomically
from cache.metadata import check_recipe
from cache.reader import Cache, ColumnReader
from stages.encode.columns import Maker, load_features_maker
from stages.encode.crops import Crops
from stages.encode.settings import EncodeSettings
from stages.placement import Placement
from stages.progress import progress
from stages.sample.generate import Samples
from stages.sample.metrics import fit_gaussian, frechet_distance
from stages.sample.settings import EvaluateSettings

Means = npt.NDArray[np.float32]

BATCH_IMAGES = 64


class EvaluateError(RepaCacheError):
    """There is nothing to evaluate."""


@dataclass(frozen=True)
class Result:
    """One metric of one checkpoint's samples.

    value: smaller is better; images: number of samples; reference: what they were compared
    with; is_aligned: whether the model was trained towards these very features, which flatters
    it.
    """

    metric: str
    value: float
    images: int
    reference: str
    reference_images: int
    is_aligned: bool

    @property
    def note(self) -> str:
        """What a reader has to know to judge the value."""
        aligned = "; the model was aligned to this encoder" if self.is_aligned else ""
        return f"{self.images:,} samples against {self.reference_images:,} cached images{aligned}"


def evaluate(
    settings: EvaluateSettings, samples: Samples, encode: EncodeSettings, place: Placement
) -> list[Result]:
    """Compute the configured metrics of a folder of samples, and keep them beside it as JSON.

    Raises EvaluateError if samples are missing, StaleCacheError if an encoder is not the one
    that filled the cache.
    """
    if lacking := samples.missing():
        raise EvaluateError(
            f"{samples.folder} lacks {len(lacking)} of {samples.images} images. "
            "Run `repa-cache sample` first."
        )
    cache = Cache(encode.cache.path)
    results = [
        frechet_in_features(encoder, samples, cache, encode, place)
        for encoder in settings.frechet_encoders
    ]
    report = {
        "checkpoint": samples.folder.name,
        "results": [asdict(result) for result in results],
        "versions": {package: version(package) for package in ("repa-cache", "torch", "timm")},
    }
    write_atomically(results_path(samples), json.dumps(report, indent=2).encode())
    return results


def results_path(samples: Samples) -> Path:
    """The JSON file of the metrics of some samples."""
    return samples.folder.with_name(f"{samples.folder.name}.json")


def read_results(samples: Samples) -> list[Result]:
    """The metrics that were computed for some samples, if any were."""
    path = results_path(samples)
    if not path.is_file():
        return []
    return [Result(**result) for result in json.loads(path.read_text())["results"]]


def frechet_in_features(
    encoder: str, samples: Samples, cache: Cache, encode: EncodeSettings, place: Placement
) -> Result:
    """The Frechet distance between samples and all cached images, in mean-pooled tokens."""
    column = cache.column(f"features/{encoder}")
    maker = load_features_maker(encode, encoder, place.device)
    check_recipe(column.column, maker.recipe)
    reference = np.concatenate(list(_cached_means(column)))
    drawn = np.concatenate(list(_sample_means(samples, maker, f"fd_{encoder}")))
    return Result(
        metric=f"fd_{encoder}",
        value=frechet_distance(fit_gaussian(drawn), fit_gaussian(reference)),
        images=samples.images,
        reference=str(cache.path),
        reference_images=int(column.valid.sum()),
        is_aligned=encoder in samples.aligned_with,
    )


def _cached_means(reader: ColumnReader) -> Iterator[Means]:
    """Mean tokens of every cached image, float32 [B, D] at a time."""
    rows = np.flatnonzero(reader.valid)
    for start in range(0, len(rows), BATCH_IMAGES):
        yield _means(reader.values("tokens", rows[start : start + BATCH_IMAGES]))


def _sample_means(samples: Samples, maker: Maker, title: str) -> Iterator[Means]:
    """Mean tokens of every sample, float32 [B, D] at a time."""
    with progress(title, samples.images, "images") as advance:
        for start in range(0, samples.images, BATCH_IMAGES):
            indices = range(start, min(start + BATCH_IMAGES, samples.images))
            pixels = np.stack([np.asarray(Image.open(samples.path(i))) for i in indices])
            crops = Crops.of(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            yield _means(maker.network(crops)[maker.array].cpu().numpy())
            advance(len(indices), "")


def _means(tokens: npt.NDArray[np.float32]) -> Means:
    means: Means = tokens.mean(axis=1)
    return means
