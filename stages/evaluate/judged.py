"""Samples that are judged, and what is known of how they were drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.errors import RepaCacheError
from cache.recipe import differences
from stages.evaluate.image_sets import FolderImages, ImageSet, NpzImages
from stages.evaluate.npz import NpzFile
from stages.sample.sample_settings import SampleSettings
from stages.sample.samples import MANIFEST, Samples, read_manifest


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
        raise EvaluateError(f"There is no {path}. Run `repa-cache sample` first.")
    if not path.is_dir():
        return Judged(path, NpzImages(NpzFile(path)), read_manifest(path.with_suffix("")) or {})
    manifest = read_manifest(path) or {}
    wanted = manifest.get("images")
    if wanted and (lacking := Samples(path, wanted).missing()):
        raise EvaluateError(
            f"{path}: {len(lacking)} of {wanted} images are missing. Run `repa-cache sample` once "
            f"more with the settings in its {MANIFEST}, which draws these."
        )
    return Judged(path, FolderImages(path, threads, count=wanted), manifest)
