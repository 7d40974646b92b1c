"""What samples are compared with: Gaussians and features that are known, and images for the rest.

D features, M images whose features are kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache.errors import RepaCacheError
from cache.files import atomic_file
from cache.metadata import check_recipe, has_column
from cache.reader import Cache
from stages.encode.settings import EncodeSettings
from stages.placement import Placement
from stages.sample.image_sets import CachedImages, FolderImages, ImageSet, NpzImages
from stages.sample.measure import EncoderVectors, Network, Wanted, cached_gaussian, measure
from stages.sample.metrics import POOL, SPATIAL, Gaussian
from stages.sample.npz import IMAGES, NpzFile

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
    identities of the networks behind what is known, by their names, as far as they are known.
    """

    name: str
    gaussians: Mapping[str, Gaussian] = field(default_factory=dict)
    features: Tensor | None = None
    images: ImageSet | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)

    def has(self, features: str) -> bool:
        """Whether the Gaussian of some features is known or can be measured."""
        return features in self.gaussians or self.images is not None

    @property
    def has_features(self) -> bool:
        """Whether features of single images are known or can be measured."""
        return self.features is not None or self.images is not None

    def completed(
        self, wanted: Wanted, networks: Sequence[Network], batch: int, place: Placement
    ) -> "Reference":
        """With what is wanted, which is measured where it is not known yet."""
        lacking = Wanted(
            wanted.gaussians.difference(self.gaussians),
            {} if self.features is not None else wanted.rows,
        )
        if not lacking:
            return self
        assert self.images is not None, "nothing is wanted that cannot be had"
        found = measure("the reference", self.images, networks, lacking, batch, place)
        return replace(
            self,
            gaussians={**self.gaussians, **found.gaussians},
            features=found.rows.get(POOL, self.features),
            made_by={**self.made_by, **{n.name: n.identity for n in networks}},
        )


def open_reference(
    path: Path | None,
    side: int,
    encode: EncodeSettings,
    encoders: Sequence[EncoderVectors],
    place: Placement,
) -> Reference:
    """The reference at a path, by default the cached data set.

    side: of the samples in px. Raises ReferenceSetError if it is of another size, StaleCacheError
    if the cache was filled by another encoder.
    """
    reference = _cached(encode, encoders, place) if path is None else _at(path, side, encode)
    if reference.images is not None and reference.images.side != side:
        there = reference.images.side
        raise ReferenceSetError(
            f"{reference.name} has images of {there} px, but the samples have {side} px."
        )
    return reference


def _cached(
    encode: EncodeSettings, encoders: Sequence[EncoderVectors], place: Placement
) -> Reference:
    """The cached data set; of encoders that filled a column, the Gaussian is in the cache."""
    cache, gaussians, made_by = Cache(encode.cache.path), {}, {}
    for vectors in encoders:
        if has_column(cache.path, vectors.column):
            reader = cache.column(vectors.column)
            check_recipe(reader.column, vectors.recipe)
            gaussians[vectors.name] = cached_gaussian(reader, place)
            made_by[vectors.name] = vectors.identity
    images = CachedImages(encode, encode.latents.column)
    return Reference(str(cache.path), gaussians, images=images, made_by=made_by)


def _at(path: Path, side: int, encode: EncodeSettings) -> Reference:
    if path.is_dir():
        return Reference(str(path), images=FolderImages(path, encode.build.threads, side))
    file = NpzFile(path)
    about = json.loads(str(file.array(ABOUT))) if ABOUT in file.names else {}
    gaussians = {
        name: Gaussian(
            file.array(mean).astype(np.float64),
            file.array(covariance).astype(np.float64),
            about.get("images", {}).get(name),
        )
        for name, (mean, covariance) in _arrays_in(file).items()
    }
    images = NpzImages(file) if IMAGES in file.names else None
    if not gaussians and images is None:
        raise ReferenceSetError(
            f"{path} has neither statistics (mu, sigma) nor images ({IMAGES}), but "
            f"{', '.join(sorted(file.names)) or 'nothing'}."
        )
    features = torch.from_numpy(file.array(FEATURES)) if FEATURES in file.names else None
    return Reference(str(path), gaussians, features, images, about.get("networks", {}))


def _arrays_in(file: NpzFile) -> dict[str, tuple[str, str]]:
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
                f"{network.identity[:12]} here. Make it anew with --save-statistics."
            )


def save_reference(path: Path, reference: Reference) -> None:
    """Write what is known of a reference as a file of statistics, with ADM's names."""
    about = {
        "reference": reference.name,
        "images": {name: gaussian.images for name, gaussian in reference.gaussians.items()},
        "networks": dict(reference.made_by),
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
