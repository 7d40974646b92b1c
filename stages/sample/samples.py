"""A folder of numbered images, and the manifest that says what they were drawn from and how."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.files import remove_leftovers, write_atomically
from cache.recipe import differences
from stages.sample.sample_settings import SAMPLING
from stages.sample.solvers.solver import SampleError

MANIFEST, CAPTIONS = "manifest.json", "captions.json"


@dataclass(frozen=True)
class Samples:
    """Samples that are there or are to be drawn.

    folder: numbered PNG files and a manifest; images: how many there have to be.
    """

    folder: Path
    images: int

    @property
    def grid(self) -> Path:
        """A picture of the first images."""
        return self.folder.with_name(f"{self.folder.name}.png")

    @property
    def npz(self) -> Path:
        """All images as one file."""
        return self.folder.with_name(f"{self.folder.name}.npz")

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def captions(self) -> list[str] | None:
        """What the images were drawn of, one after the other, if that is captions."""
        path = self.folder / CAPTIONS
        if not path.is_file():
            return None
        found: list[str] = json.loads(path.read_bytes())
        return found

    def write_captions(self, text: Callable[[int], str]) -> None:
        """Keep what each image was drawn of, beside them."""
        captions = [text(index) for index in range(self.images)]
        write_atomically(self.folder / CAPTIONS, json.dumps(captions, indent=0).encode())

    def missing(self) -> list[int]:
        """Indices of the images that are not there yet."""
        return [index for index in range(self.images) if not self.path(index).is_file()]

    def claim(self, told: dict[str, Any], unsaid: dict[str, Any]) -> None:
        """Write the manifest of a new folder, or compare with that of an old one.

        told: what decides the pixels; unsaid: those that manifests of earlier versions leave out,
        with what they mean by it. Raises SampleError if those that are there are others.
        """
        if (found := read_manifest(self.folder)) is not None:
            before = {key: value for key, value in found.items() if key != "images"}
            meant = unsaid | SAMPLING.read_by(before)
            known = {key: value for key, value in meant.items() if key in before | told}
            changed = differences(known, told, "folder")
            # Before the first image, nothing was drawn with other settings.
            if changed and any(self.folder.glob("*.png")):
                raise SampleError(
                    f"{self.folder} holds samples drawn with other settings ({'; '.join(changed)})",
                    remedy=(
                        "Restore them, or name another folder with --out; `repa-cache evaluate` "
                        "measures those that are there as they were drawn."
                    ),
                )
        elif self.folder.exists() and any(self.folder.glob("[!.]*")):
            raise SampleError(
                f"{self.folder} holds other files, and no manifest of samples",
                remedy="Name another folder with --out.",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        manifest = json.dumps({"images": self.images, **told}, indent=2)
        write_atomically(self.folder / MANIFEST, manifest.encode())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the manifest of a folder says, if there is one."""
    path = folder / MANIFEST
    content: dict[str, Any] | None = json.loads(path.read_bytes()) if path.is_file() else None
    return content
