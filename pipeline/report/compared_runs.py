"""What runs have in common and what not: settings and cached columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cache.recipe import flatten
from pipeline.report.records import RunRecord

# The folder of a run is its name, and not a setting to compare.
OWN = "train.run"
# The entries of [[train.align]], and what a run has that has none.
ALIGNMENTS, NO_ALIGNMENT = "train.align.", "train.align"
# Of a data set; which images it has is told by the fingerprint of the rows.
OF_IMAGES = frozenset({"resolution", "flip"})
# Settings without which losses mean something else; the family is that of the model's name.
MEANING = ("dataset.resolution", "latents.vae", "train.interpolant", "train.times")


class Missing(Enum):
    """Why a run has no value of a setting."""

    NOT_READ = "not read"
    NOT_SET = "not set"


NOT_READ, NOT_SET = Missing.NOT_READ, Missing.NOT_SET


def different_settings(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs that read them, and each run's value.

    What a run does not read is NOT_READ, and what it does not have NOT_SET, as None is a value.
    """
    settings = [flatten(record.config) for record in records]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    rows = {
        name: [
            of_run.get(name, _missing(name)) if _is_read(name, record.config) else NOT_READ
            for of_run, record in zip(settings, records, strict=True)
        ]
        for name in names
    }
    return {name: row for name, row in rows.items() if _differ(row)}


def _missing(name: str) -> Missing:
    """What it means that a run does not have a setting.

    Of an alignment that only others have, kind and encoder say so, and the rest is not read.
    """
    is_detail = name.startswith(ALIGNMENTS) and not name.endswith((".kind", ".encoder"))
    return NOT_READ if is_detail else NOT_SET


def _differ(row: Sequence[Any]) -> bool:
    read = [value for value in row if value is not NOT_READ]
    return any(value != read[0] for value in read)


def _is_read(name: str, config: Mapping[str, Any]) -> bool:
    """Whether training by a configuration reads a setting."""
    train = config.get("train", {})
    encoders = {term["encoder"] for term in train.get("align", ()) if "encoder" in term}
    section, _, key = name.partition(".")
    match section:
        case "train":
            return name not in (OWN, NO_ALIGNMENT)
        case "encoders":
            return any(key.startswith(f"{encoder}.") for encoder in encoders)
        case "dataset":
            return key in OF_IMAGES
        case "sample":
            return bool(train.get("grid_every"))
    return section == "latents"


def reasons_against_comparing(records: Sequence[RunRecord]) -> list[str]:
    """Why the losses of runs mean different things, if they do."""
    different = different_settings(records)
    families = {str(record.settings.get("model")).partition("-")[0] for record in records}
    reasons = ["train.model (SiT or DiT)"] if len(families) > 1 else []
    return reasons + [name for name in MEANING if name in different]


@dataclass(frozen=True)
class ColumnRow:
    """A cached column and its fingerprint in each run that has read it."""

    name: str
    values: list[str | None]

    @property
    def is_of_versions(self) -> bool:
        """Whether runs have read different versions of it."""
        return len({one for one in self.values if one is not None}) > 1


def columns_read(records: Sequence[RunRecord]) -> list[ColumnRow]:
    """The columns that any run has read, and the table of rows."""
    of_runs = [
        {
            **record.state.get("columns", {}),
            **{f"rows ({what})": of for what, of in record.state.get("rows", {}).items()},
        }
        for record in records
    ]
    names = dict.fromkeys(name for of_run in of_runs for name in of_run)
    return [
        ColumnRow(name, [str(of_run[name]) if name in of_run else None for of_run in of_runs])
        for name in names
    ]
