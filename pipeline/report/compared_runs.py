"""What can be compared of runs: settings, cached columns, and metrics of samples over the steps."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cache.recipe import flatten
from pipeline.pages.figures import COLOURS, inline_svg, styled
from pipeline.report.curves import SMALL, Panel, new_panel, run_key, set_step_axis
from pipeline.report.metrics import direction
from pipeline.report.records import RunRecord, SampleRecord
from stages.evaluate.results import OF_MANIFEST, Result

# The folder of a run is its name, and not a setting to compare.
OWN = "train.run"
# The entries of [[train.align]], and what a run has that has none.
ALIGNMENTS, NO_ALIGNMENT = "train.align.", "train.align"
# Of a data set; which images it has is told by the fingerprint of the rows.
OF_IMAGES = frozenset({"resolution", "flip"})
# Settings without which losses mean something else; the family is that of the model's name.
MEANING = ("dataset.resolution", "latents.vae", "train.interpolant", "train.times")
# What decides the images that are judged, beside the weights.
WEIGHTS = ("model", "checkpoint", "checkpoint_sha256", "layout")
DRAWN_BY = tuple(name for name in OF_MANIFEST if name not in WEIGHTS)
# Of a sha256, of 64.
SHOWN_DIGITS = 8
LOOKS = ("-", "--", ":", "-.")


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
    *_, key = name.removeprefix(ALIGNMENTS).split(".", 1)
    is_detail = name.startswith(ALIGNMENTS) and key not in ("kind", "encoder")
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


@dataclass(frozen=True)
class Judged:
    """Samples with metrics that were measured alike.

    results: by metric; group: a letter for how they were drawn and judged.
    """

    run: int
    record: RunRecord
    samples: SampleRecord
    results: dict[str, Result]
    group: str


def judged_samples(records: Sequence[RunRecord]) -> tuple[list[Judged], dict[str, str]]:
    """All samples with metrics, and for each letter of a group what its samples share."""
    several = _of_several_networks(records)
    groups: dict[str, str] = {}
    judged = []
    for number, record in enumerate(records):
        for samples in sorted(record.samples, key=lambda one: (one.step or 0, one.title)):
            for results in _measured_alike(samples.results):
                words = in_words(samples, results, several)
                groups.setdefault(words, chr(ord("A") + len(groups)))
                judged.append(Judged(number, record, samples, results, groups[words]))
    return judged, {letter: words for words, letter in groups.items()}


def _measured_alike(results: Sequence[Result]) -> list[dict[str, Result]]:
    """Results by metric, apart where samples or reference were others, or it is one metric."""
    rows: list[dict[str, Result]] = []
    for result in results:
        row = next((row for row in rows if _fits(result, row)), None)
        if row is None:
            rows.append(row := {})
        row[result.metric] = result
    return rows


def _fits(result: Result, row: dict[str, Result]) -> bool:
    """Whether a result was measured of as many samples, and against the same, as those in a row."""
    references = {one.reference for one in (result, *row.values()) if one.reference is not None}
    images = {one.images for one in (result, *row.values())}
    return result.metric not in row and len(references) <= 1 and len(images) == 1


def _of_several_networks(records: Sequence[RunRecord]) -> set[str]:
    """The metrics that were measured with several networks."""
    results = [one for record in records for samples in record.samples for one in samples.results]
    networks = {(one.metric, one.network) for one in results if one.network}
    weights = {(one.metric, one.weights_sha256) for one in results if one.weights_sha256}
    counts = (Counter(metric for metric, _ in known) for known in (networks, weights))
    return {metric for count in counts for metric, number in count.items() if number > 1}


def in_words(samples: SampleRecord, results: dict[str, Result], several: Collection[str]) -> str:
    """How samples were drawn, and what they were compared with.

    several: metrics that have to be told apart by their networks.
    """
    drawn = samples.drawn
    settings = [f"{name} {spelt(drawn[name])}" for name in DRAWN_BY if drawn.get(name) is not None]
    images = [f"{one.images:,} images" for one in results.values()]
    compared = [one.against for one in results.values() if one.reference]
    networks = [
        f"{metric} by network {str(one.network or one.weights_sha256)[:SHOWN_DIGITS]}"
        for metric, one in results.items()
        if metric in several
    ]
    parts = [*images, *compared, f"weights {samples.weights}", *settings, *networks]
    return ", ".join(dict.fromkeys(parts))


def spelt(value: Any) -> str:
    """A setting that is a value, or an interval with two ends."""
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)


def metric_names(judged: Sequence[Judged]) -> list[str]:
    """The metrics that any samples have."""
    return list(dict.fromkeys(name for one in judged for name in one.results))


def remarks(judged: Sequence[Judged]) -> dict[str, list[str]]:
    """What a reader has to know to judge the values, and of which metrics."""
    found: dict[str, list[str]] = {}
    for one in judged:
        for name, result in one.results.items():
            for remark in result.remarks:
                metrics = found.setdefault(remark, [])
                if name not in metrics:
                    metrics.append(name)
    return found


def metric_panels(judged: Sequence[Judged]) -> list[Panel]:
    """A panel for each metric that a run has of several steps, drawn and judged alike."""
    panels = []
    for metric in metric_names(judged):
        lines = {key: points for key, points in _points(judged, metric).items() if len(points) > 1}
        if lines:
            panels.append(_draw(metric, lines))
    return panels


def _points(
    judged: Sequence[Judged], metric: str
) -> dict[tuple[int, str], list[tuple[int, float]]]:
    """Steps and values of a metric, by run and group."""
    lines: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for one in judged:
        if one.samples.step is not None and metric in one.results:
            point = one.samples.step, one.results[metric].value
            lines.setdefault((one.run, one.group), []).append(point)
    return lines


def _draw(metric: str, lines: dict[tuple[int, str], list[tuple[int, float]]]) -> Panel:
    with styled():
        figure, axes = new_panel(SMALL)
        for (run, group), points in lines.items():
            steps, values = zip(*points, strict=True)
            look = LOOKS[(ord(group) - ord("A")) % len(LOOKS)]
            axes.plot(
                steps, values, look, marker="o", markersize=4, color=COLOURS[run], gid=run_key(run)
            )
        set_step_axis(axes, max(step for points in lines.values() for step, _ in points))
        picture = inline_svg(figure)
    groups = sorted({group for _, group in lines})
    caption = f"lines: {', '.join(groups)}, as in the table" if len(groups) > 1 else ""
    return Panel(f"{metric} {direction(metric)}", caption, picture)
