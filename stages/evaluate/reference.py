"""What samples are compared with: Gaussians and features that are known, and images for the rest.

D features, M images whose features are kept.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.errors import RepaCacheError
from cache.files import atomic_file
from cache.metadata import check_recipe, has_column
from cache.order import permutation
from cache.reader import Cache
from stages.encode.build_settings import EncodeSettings
from stages.evaluate import image_sets, metrics
from stages.evaluate.evaluate_settings import POOL, SPATIAL, Metric
from stages.evaluate.measure import (
    PART_SEED,
    EncoderVectors,
    Network,
    Wanted,
    measure,
    measure_cached,
)
from stages.placement import Placement

# The names that ADM's files give to mean and covariance.
ADM_NAMES = {POOL: ("mu", "sigma"), SPATIAL: ("mu_s", "sigma_s")}
# What files of this project hold beside them.
ABOUT, FEATURES = "about", "features"


class ReferenceSetError(RepaCacheError):
    """A reference cannot be used, or lacks what is asked for."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    name: for people; gaussians: by the names of features; features: of Inception's pool [M, D],
    if they are known; images: for measuring what is not known, if there are any; made_by: the
    identities of the networks behind what is known, by their names, as far as they are known;
    parts: Gaussians of so many of the images, by the names of features and their number; floors:
    by the names of features and by numbers of samples.
    """

    name: str
    gaussians: Mapping[str, metrics.Gaussian] = field(default_factory=dict)
    features: Tensor | None = None
    images: image_sets.ImageSet | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[tuple[str, int], metrics.Gaussian] = field(default_factory=dict)
    floors: Mapping[str, Mapping[int, metrics.Floor]] = field(default_factory=dict)

    def has(self, features: str) -> bool:
        """Whether the Gaussian of some features is known or can be measured."""
        return features in self.gaussians or self.images is not None

    def allows(self, metric: Metric) -> bool:
        """Whether a metric in features of Inception can be computed."""
        if metric.function is None:
            return self.has(metric.features)
        return not metric.is_compared or self.features is not None or self.images is not None

    @property
    def halves(self) -> tuple[Tensor, Tensor] | None:
        """The features in two halves, drawn at random, if there are any of enough images."""
        if self.features is None or len(self.features) < 2 * metrics.FEWEST:
            return None
        one, other = np.array_split(permutation(len(self.features), PART_SEED), 2)
        return self.features[one], self.features[other]

    def why_no_floor(self, features: str) -> str:
        """Why there is no floor for some number of samples."""
        if kept := self.floors.get(features):
            return f"the reference has kept that of {', '.join(map(str, sorted(kept)))} images only"
        if self.images is None:
            return "the reference has statistics alone"
        return "the reference has too few images"

    def completed(
        self,
        wanted: Wanted,
        counts: Collection[int],
        networks: Sequence[Network],
        batch: int,
        place: Placement,
    ) -> "Reference":
        """With what is wanted, which is measured where it is not known yet.

        counts: numbers of samples, for which there are to be floors. Only rank 0 gets these.
        """
        sizes = {name: self._part_sizes(name, counts) for name in wanted.gaussians}
        lacking = Wanted(
            wanted.gaussians.difference(self.gaussians),
            {} if self.features is not None else wanted.rows,
            {
                name: frozenset(of.values())
                for name, of in sizes.items()
                if of and self._measures(name)
            },
        )
        whole = self
        if lacking:
            assert self.images is not None, "nothing is wanted that cannot be had"
            found = measure("the reference", self.images, networks, lacking, batch, place)
            whole = replace(
                self,
                gaussians={**self.gaussians, **found.gaussians},
                features=found.rows.get(POOL, self.features),
                parts={**self.parts, **found.parts},
                made_by={**self.made_by, **{n.name: n.identity for n in networks}},
            )
        return whole.with_floors(sizes) if place.is_main else whole

    def _measures(self, features: str) -> bool:
        """Whether parts of some features are to be measured, for which there have to be images."""
        known = self.gaussians.get(features)
        return self.images is not None and (known is None or known.images is None)

    def _part_sizes(self, features: str, counts: Collection[int]) -> dict[int, int]:
        """How many images stand for which numbers of samples, where that gives a new floor."""
        known = self.gaussians.get(features)
        if known is not None and known.images is not None:
            images = known.images
        elif self.images is not None:
            images = len(self.images)
        else:
            return {}
        is_apart = known is None or known.images is not None
        sizes = {n: metrics.part_size(n, images, is_apart=is_apart) for n in counts}
        there = self.floors.get(features, {})
        return {n: size for n, size in sizes.items() if size is not None and n not in there}

    def with_floors(self, sizes: Mapping[str, Mapping[int, int]]) -> "Reference":
        """With floors. sizes: of parts, by features and number of samples."""
        floors = {features: dict(there) for features, there in self.floors.items()}
        for features, of in sizes.items():
            for count, size in of.items():
                if (part := self._part(features, size)) is not None:
                    floor = metrics.floor_of(part, self.gaussians[features])
                    floors.setdefault(features, {})[count] = floor
        return replace(self, floors=floors)

    def _part(self, features: str, size: int) -> metrics.Gaussian | None:
        """The Gaussian of so many images, or of as many as features are kept of."""
        if (features, size) in self.parts or features != POOL or self.features is None:
            return self.parts.get((features, size))
        drawn = permutation(len(self.features), PART_SEED)[:size]
        return (
            metrics.fit_gaussian([self.features[drawn].numpy()])
            if len(drawn) >= metrics.FEWEST
            else None
        )


def open_reference(
    path: Path | None,
    side: int,
    counts: Collection[int],
    encode: EncodeSettings,
    encoders: Sequence[EncoderVectors],
    place: Placement,
) -> Reference:
    """The reference at a path, by default the cached data set.

    side: of the samples in px; counts: numbers of samples, for which there are to be floors.
    Raises ReferenceSetError if it is of another size or not there, StaleCacheError if the cache
    was filled by another encoder.
    """
    if path is None:
        reference = _cached(counts, encode, encoders, place)
    else:
        reference = _at(path, side, encode)
    if reference.images is not None and reference.images.side != side:
        there = reference.images.side
        raise ReferenceSetError(
            f"{reference.name} has images of {there} px, but the samples have {side} px."
        )
    return reference


def _cached(
    counts: Collection[int],
    encode: EncodeSettings,
    encoders: Sequence[EncoderVectors],
    place: Placement,
) -> Reference:
    """The cached data set; of encoders that filled a column, all that is needed is in the cache."""
    path = encode.cache.path
    if not path.exists():
        raise ReferenceSetError(
            f"There is no cache {path}, which is what samples are compared with by default",
            remedy="Name statistics or images with --reference, or another cache with --set "
            "cache.path=PATH.",
        )
    cache, made_by = Cache(path), {}
    gaussians: dict[str, metrics.Gaussian] = {}
    parts: dict[tuple[str, int], metrics.Gaussian] = {}
    for vectors in encoders:
        if has_column(path, vectors.column):
            reader = cache.column(vectors.column)
            check_recipe(reader.column, vectors.recipe)
            valid = int(reader.valid.sum())
            sizes = (metrics.part_size(count, valid, is_apart=True) for count in counts)
            parts_of = {size for size in sizes if size is not None}
            found = measure_cached(vectors.name, reader, parts_of, place)
            gaussians |= found.gaussians
            parts |= found.parts
            made_by[vectors.name] = vectors.identity
    images = image_sets.CachedImages(encode, encode.latents.column)
    return Reference(str(path), gaussians, images=images, made_by=made_by, parts=parts)


def _at(path: Path, side: int, encode: EncodeSettings) -> Reference:
    if path.is_dir():
        threads = encode.build.decoding_threads()
        folder = image_sets.FolderImages(path, threads, side, crop=encode.dataset.crop)
        return Reference(str(path), images=folder)
    file = image_sets.NpzFile(path)
    about = json.loads(str(file.array(ABOUT))) if ABOUT in file.names else {}
    gaussians = {
        name: metrics.Gaussian(
            file.array(mean).astype(np.float64),
            file.array(covariance).astype(np.float64),
            about.get("images", {}).get(name),
        )
        for name, (mean, covariance) in _arrays_in(file).items()
    }
    images = image_sets.NpzImages(file) if image_sets.IMAGES in file.names else None
    if not gaussians and images is None:
        raise ReferenceSetError(
            f"{path} has neither statistics (mu, sigma) nor images ({image_sets.IMAGES}), but "
            f"{', '.join(sorted(file.names)) or 'nothing'}."
        )
    features = torch.from_numpy(file.array(FEATURES)) if FEATURES in file.names else None
    floors = {
        name: {int(count): metrics.Floor(*floor) for count, floor in kept.items()}
        for name, kept in about.get("floors", {}).items()
    }
    networks = about.get("networks", {})
    return Reference(str(path), gaussians, features, images, networks, floors=floors)


def _arrays_in(file: image_sets.NpzFile) -> dict[str, tuple[str, str]]:
    """The names of the arrays of mean and covariance, by those of features."""
    own = {
        name.removesuffix(".mu"): (name, f"{name.removesuffix('.mu')}.sigma")
        for name in file.names
        if name.endswith(".mu")
    }
    return {
        name: arrays for name, arrays in (ADM_NAMES | own).items() if file.names.issuperset(arrays)
    }


def check_networks(reference: Reference, networks: Sequence[Network]) -> None:
    """Raise ReferenceSetError if what is known was made by networks other than these."""
    for network in networks:
        there = reference.made_by.get(network.name, network.identity)
        if there != network.identity:
            raise ReferenceSetError(
                f"{reference.name} was made with another {network.name}: {there[:12]} there, "
                f"{network.identity[:12]} here",
                remedy="Make it anew with --save-statistics.",
            )


def save_reference(path: Path, reference: Reference) -> None:
    """Write what is known of a reference as a file of statistics, with ADM's names."""
    about = {
        "reference": reference.name,
        "images": {name: gaussian.images for name, gaussian in reference.gaussians.items()},
        "networks": dict(reference.made_by),
        "floors": {
            name: {str(count): astuple(floor) for count, floor in known.items()}
            for name, known in reference.floors.items()
        },
        "versions": {name: version(name) for name in ("repa-cache", "torch", "torch-fidelity")},
    }
    arrays = {ABOUT: np.array(json.dumps(about))}
    for name, gaussian in reference.gaussians.items():
        mean, covariance = ADM_NAMES.get(name, (f"{name}.mu", f"{name}.sigma"))
        arrays |= {mean: gaussian.mean, covariance: gaussian.covariance}
    if reference.features is not None:
        arrays[FEATURES] = reference.features.numpy()
    with atomic_file(path) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
