"""What evaluation has found, and the file that keeps it beside the samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cache.files import write_atomically

PACKAGES = ("repa-cache", "torch", "torch-fidelity", "timm", "numpy")
# What a manifest says that belongs to a number.
OF_MANIFEST = (
    *("model", "checkpoint", "checkpoint_sha256", "layout", "vae", "labels", "solver", "steps"),
    *("guidance", "guidance_interval", "guided_channels", "precision", "uint8", "seed"),
)


@dataclass(frozen=True)
class Result:
    """One metric of some samples.

    deviation: over splits or subsets, where the metric has them; images: number of samples;
    reference: what they were compared with, and of how many images that is, as far as that is
    known; remarks: what a reader has to know to judge the value.
    """

    metric: str
    value: float
    deviation: float | None
    images: int
    reference: str | None
    reference_images: int | None
    remarks: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """The value with its deviation, for people."""
        return f"{self.value:.4g}" + (f" ± {self.deviation:.2g}" if self.deviation else "")

    @property
    def note(self) -> str:
        """What was compared, and what a reader has to know."""
        against = "" if self.reference is None else f" against {self.reference}"
        if self.reference_images is not None:
            against = f" against {self.reference_images:,} of {self.reference}"
        return "; ".join([f"{self.images:,} samples{against}", *self.remarks])


def results_path(samples: Path) -> Path:
    """The JSON file of the metrics of some samples, a folder or a file."""
    name = samples.name if samples.is_dir() else samples.stem
    return samples.with_name(f"{name}.json")


def write_results(
    samples: Path,
    results: Sequence[Result],
    manifest: Mapping[str, Any],
    weights: Mapping[str, str],
) -> None:
    """Keep results beside the samples.

    manifest: what the samples were drawn from and how; weights: the sha256 of the weights of each
    network that was used.
    """
    report = {
        "samples": samples.name,
        "drawn": {name: manifest.get(name) for name in OF_MANIFEST},
        "results": [asdict(result) for result in results],
        "weights_sha256": dict(weights),
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_atomically(results_path(samples), json.dumps(report, indent=2).encode())


def read_results(samples: Path) -> list[Result]:
    """The metrics that were computed for some samples, if any were."""
    found = _read(samples).get("results", [])
    return [Result(**{**result, "remarks": tuple(result["remarks"])}) for result in found]


def read_drawn(samples: Path) -> dict[str, Any]:
    """What judged samples were drawn from and how, which is known without their images."""
    return dict(_read(samples).get("drawn", {}))


def _read(samples: Path) -> dict[str, Any]:
    path = results_path(samples)
    content: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return content
