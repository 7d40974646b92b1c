"""Sampling: from a checkpoint's moving average to numbered PNG files.

B images, C latent channels, h and w the latent's sides, S the image's side in px.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache.errors import RepaCacheError
from cache.files import write_atomically
from cache.recipe import differences
from stages.encode.autoencoder import Autoencoder
from stages.placement import Placement, barrier
from stages.progress import progress
from stages.sample.grids import save_grid, save_png
from stages.sample.sampler import Sampler, make_sampled
from stages.sample.settings import SampleSettings
from stages.train import checkpoint
from stages.train.checkpoint import Checkpoint


class SampleError(RepaCacheError):
    """There is nothing to sample from, or the folder holds other samples."""


@dataclass(frozen=True)
class Samples:
    """The samples of a checkpoint.

    folder: numbered PNG files and a manifest; images: how many there have to be; aligned_with:
    the encoders the model was trained towards.
    """

    folder: Path
    images: int
    aligned_with: tuple[str, ...]

    @property
    def grid(self) -> Path:
        """A picture of the first images."""
        return self.folder.with_name(f"{self.folder.name}.png")

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.folder / f"{index:06d}.png"

    def missing(self) -> list[int]:
        """Indices of the images that are not there yet."""
        return [index for index in range(self.images) if not self.path(index).is_file()]


def newest_samples(settings: SampleSettings, run: Path) -> tuple[Checkpoint, Samples]:
    """A run's newest checkpoint and the place of its samples.

    Raises SampleError if the run has no checkpoint.
    """
    newest = checkpoint.latest(run)
    if newest is None:
        raise SampleError(f"{run} has no checkpoint. Run `repa-cache train` first.")
    folder = run / "samples" / newest.folder.name
    encoders = tuple(newest.state["settings"]["encoders"])
    return newest, Samples(folder, settings.images, encoders)


def sample(settings: SampleSettings, run: Path, vae: str, place: Placement) -> tuple[Samples, int]:
    """Draw the images that a run's newest checkpoint lacks; returns how many this process drew.

    Raises SampleError if the run has no checkpoint, if its samples were drawn with other
    settings, or if no solver is there for its model.
    """
    newest, samples = newest_samples(settings, run)
    if newest.model.learns_sigma:
        raise SampleError(
            f"{newest.folder} holds a DiT, which no solver here can draw from. "
            "Write it with `repa-cache export` for the published sampler."
        )
    if place.is_main:
        _claim(samples.folder, settings, newest, vae)
    barrier(place)
    lacking = [index for index in samples.missing() if index % place.world == place.rank]
    if lacking:
        model = make_sampled(newest.model, newest.weights("ema"), place.device)
        interpolant = newest.state["settings"]["interpolant"]
        sampler = Sampler(settings, model, interpolant, place.device)
        autoencoder = Autoencoder(vae, place.device)
        with progress("sample", len(lacking), "images", quiet=not place.is_main) as advance:
            for start in range(0, len(lacking), settings.batch_size):
                indices = lacking[start : start + settings.batch_size]
                images = autoencoder.decode(sampler.latents(indices))
                for index, image in zip(indices, images, strict=True):
                    save_png(samples.path(index), image.permute(1, 2, 0).numpy())
                advance(len(indices), "")
    barrier(place)
    if place.is_main:
        _draw_grid(settings, samples)
    return samples, len(lacking)


def _claim(folder: Path, settings: SampleSettings, newest: Checkpoint, vae: str) -> None:
    """Write the manifest of a new folder, or compare with that of an old one."""
    with newest.weights_file("ema").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    changeable = {"images", "batch_size", "grid"}
    manifest: dict[str, Any] = {
        "checkpoint_sha256": digest,
        "vae": vae,
        **settings.model_dump(mode="json", exclude=changeable),
    }
    path = folder / "manifest.json"
    if path.is_file():
        if changed := differences(json.loads(path.read_text()), manifest, "folder"):
            raise SampleError(
                f"{folder} holds samples drawn with other settings ({'; '.join(changed)}). "
                "Restore them, or move the folder away."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(manifest, indent=2).encode())


def _draw_grid(settings: SampleSettings, samples: Samples) -> None:
    rows, columns = settings.grid
    shown = min(rows * columns, samples.images)
    images = [np.asarray(Image.open(samples.path(index))) for index in range(shown)]
    save_grid(samples.grid, images, columns)
