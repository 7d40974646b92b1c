"""What a run has come to, in a few words each."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.report.records import RunRecord

LACKING = "\N{EN DASH}"


@dataclass(frozen=True)
class Fact:
    """A value for people, and what is to be said of it."""

    value: str
    note: str = ""


def about(record: RunRecord) -> str:
    """What was trained, on what, and when."""
    settings = record.settings
    parts = [str(settings.get("model", "a model that is not known yet"))]
    if record.parameters is not None:
        parts.append(f"{record.parameters / 1e6:,.1f} M parameters")
    if resolution := record.config.get("dataset", {}).get("resolution"):
        parts.append(f"{resolution} px")
    parts.append(_alignment(record))
    if record.written is not None:
        parts.append(f"log of {record.written:%Y-%m-%d %H:%M} UTC")
    return ", ".join(parts)


def _alignment(record: RunRecord) -> str:
    terms = record.settings.get("align", ())
    return "; ".join(map(_term, terms)) if terms else "aligned with no encoder"


def _term(term: Mapping[str, Any]) -> str:
    """An entry of `[[train.align]]`: of what kind, with what, where, how much and how long."""
    parts = [term["kind"]]
    if "encoder" in term:
        parts = [f"aligned with {term['encoder']} ({term['kind']})"]
    if "depth" in term:
        parts[0] += f" at block {term['depth']}"
    parts.append(f"weight {term['weight']:.4g}")
    if term["until"] is not None:
        parts.append(f"until step {term['until']:,}")
    return ", ".join(parts)


def facts_of(record: RunRecord) -> dict[str, Fact]:
    """What a run has come to, by name."""
    facts = {"steps": _steps(record), "images seen": _images(record), "time": _time(record)}
    if (speed := record.curve("images_per_second").median) is not None:
        facts["images/s"] = Fact(f"{speed:,.4g}", "median")
    if (wait := record.curve("data_wait").median) is not None:
        facts["data wait"] = Fact(f"{wait:.1%}", "of the time, median")
    if memory := record.curve("memory_gb").values:
        facts["memory"] = Fact(f"{max(memory):,.2f} GB", "at most")
    for name in record.losses:
        if smoothed := record.curve(name).smoothed:
            facts[name] = Fact(f"{smoothed[-1]:.4g}", f"after {smoothed[0]:.4g}")
    if record.skipped:
        facts["steps left out"] = Fact(f"{record.skipped:,}", "loss or gradient not finite")
    return facts


def _steps(record: RunRecord) -> Fact:
    if (total := record.settings.get("steps")) is None:
        return Fact(f"{record.step:,}")
    return Fact(f"{record.step:,}", "all" if record.step >= total else f"of {total:,}")


def _images(record: RunRecord) -> Fact:
    epochs = "" if record.epochs is None else f"{record.epochs:,.4g} epochs"
    return Fact(f"{record.images:,}", epochs)


def _time(record: RunRecord) -> Fact:
    """How long it took; as every line tells the speed of its steps, pauses do not count."""
    speed, total = record.steps_per_second, record.settings.get("steps", 0)
    if speed is None:
        return Fact(LACKING)
    left = (total - record.step) / speed
    return Fact(_duration(record.seconds), f"{_duration(left)} left" if left > 0 else "training")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
