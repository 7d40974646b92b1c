"""What was found of samples that were judged, and the file beside them that keeps it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from cache.errors import RepaCacheError
from cache.files import write_atomically
from stages.weights.run_folder import found_beside

PACKAGES = ("repa-cache", "torch", "torch-fidelity", "timm", "numpy")
# What a manifest says that belongs to a number.
OF_MANIFEST = (
    *("model", "checkpoint", "checkpoint_sha256", "layout", "vae", "labels", "solver", "steps"),
    *("time_shift", "guidance", "guidance_interval", "guided_channels"),
    *("precision", "uint8", "seed"),
)
INCEPTION = "inception"


class EvaluateError(RepaCacheError):
    """There is nothing to evaluate, or not by these metrics."""


class ResultsError(RepaCacheError):
    """The file of the results of some samples cannot be read."""


@dataclass(frozen=True)
class Result:
    """One metric of some samples.

    deviation: over splits or subsets, where the metric has them; images: number of samples;
    reference: what they were compared with, and of how many images that is, as far as that is
    known; remarks: what a reader has to know to judge the value; floor: what as many real images
    are measured at, and of how many that is; noise: what noise is measured at; network: the
    identity of what made the features; weights_sha256: of its weights; versions: of the software.
    """

    metric: str
    value: float
    deviation: float | None
    images: int
    reference: str | None
    reference_images: int | None
    remarks: tuple[str, ...] = ()
    floor: float | None = None
    floor_images: int | None = None
    noise: float | None = None
    network: str | None = None
    weights_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The value with its deviation, for people."""
        return f"{self.value:.4g}" + (f" ± {self.deviation:.2g}" if self.deviation else "")

    @property
    def shown_floor(self) -> str:
        """The floor, for people."""
        return "" if self.floor is None else f"{self.floor:.4g}"

    @property
    def shown_reference(self) -> str:
        """The reference, for people: short where it lies in the working folder."""
        if self.reference is None:
            return ""
        path, here = Path(self.reference), Path.cwd()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    @property
    def against(self) -> str:
        """What was compared with, as far as it is known of how many images."""
        if self.reference is None:
            return ""
        of = "" if self.reference_images is None else f"{self.reference_images:,} images of "
        return f"against {of}{self.shown_reference}"

    @property
    def note(self) -> str:
        """What was compared, and what a reader has to know."""
        compared = f"{self.images:,} samples {self.against}".rstrip()
        floor = [f"floor {self.shown_floor}"] if self.floor is not None else []
        return "; ".join([compared, *floor, *self.remarks])

    def is_again(self, other: "Result") -> bool:
        """Whether it is the same measurement of the same images as another one."""
        measured = self.measured == other.measured
        # Files of earlier versions do not tell what network it was, only its weights.
        if self.network is None or other.network is None:
            return measured and self.weights_sha256 == other.weights_sha256
        return measured and self.network == other.network

    @property
    def measured(self) -> tuple[Any, ...]:
        """What was measured of what, whatever by."""
        return self.metric, self.reference, self.images, self.reference_images


@dataclass(frozen=True)
class Record:
    """All results of the same images. drawn: from what and how they were drawn."""

    drawn: dict[str, Any]
    results: list[Result]


def results_path(samples: Path) -> Path:
    """The JSON file of the metrics of some samples, a folder or a file."""
    name = samples.name if samples.is_dir() else samples.stem
    return samples.with_name(f"{name}.json")


def installed_versions() -> dict[str, str]:
    """The versions of the software that decides a metric."""
    return {package: version(package) for package in PACKAGES}


def write_results(
    samples: Path,
    results: Sequence[Result],
    manifest: Mapping[str, Any],
    weights: Mapping[str, str],
) -> None:
    """Keep results beside the samples, with all that were measured before.

    manifest: what the samples were drawn from and how; weights: the sha256 of the weights of each
    network that was used. Raises ResultsError if what is there cannot be read.
    """
    path = results_path(samples)
    drawn = {name: manifest.get(name) for name in OF_MANIFEST}
    # Others may measure the same samples at this moment.
    with FileLock(path.with_name(f".{path.name}.lock")):
        records = read_records(samples)
        same = [record for record in records if are_same_images(record.drawn, drawn)]
        kept = [
            result
            for record in same
            for result in record.results
            if not any(result.is_again(one) for one in results)
        ]
        report = {
            "samples": samples.name,
            "drawn": drawn,
            "results": [asdict(result) for result in (*kept, *results)],
            "weights_sha256": dict(weights),
            "versions": installed_versions(),
            "earlier": [asdict(record) for record in records if record not in same],
        }
        write_atomically(path, json.dumps(report, indent=2).encode())


def read_records(samples: Path) -> list[Record]:
    """All that was measured of some samples, and of others that were in their place before.

    Those that were measured last come first. Raises ResultsError if the file cannot be read.
    """
    path = results_path(samples)
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
        parts = [content, *content.get("earlier", [])]
        return [Record(dict(part.get("drawn", {})), _results(part, samples)) for part in parts]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(
            f"{path} holds no results that can be read: {error}",
            remedy="Move it away; `repa-cache evaluate` then writes a new one.",
        ) from error


def read_results(samples: Path) -> list[Result]:
    """The metrics that were computed for the images of some samples, those of today last."""
    return next((record.results for record in read_records(samples)), [])


def _results(part: Mapping[str, Any], samples: Path) -> list[Result]:
    """The results in a part of a file; earlier versions keep what they share beside them."""
    weights = part.get("weights_sha256", {})
    shared = {"versions": part.get("versions", {})}
    return [
        Result(
            **{
                **shared,
                "weights_sha256": weights.get(one["metric"], weights.get(INCEPTION)),
                **one,
                "remarks": tuple(one["remarks"]),
                "reference": _located(one["reference"], samples),
            }
        )
        for one in part.get("results", [])
    ]


def _located(reference: str | None, samples: Path) -> str | None:
    """A reference by its whole path, by which it is known from wherever it is named."""
    place = None if reference is None else found_beside(samples, Path(reference))
    return reference if place is None else str(place.absolute())


def are_same_images(there: Mapping[str, Any], drawn: Mapping[str, Any]) -> bool:
    """Whether images were drawn from the same and alike, as far as both say."""
    return all(there[name] == drawn[name] for name in there.keys() & drawn.keys())
