"""What a sweep will cost and gain: its columns once, and encoders in every step of every run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from rich.filesize import decimal

from pipeline.plan import durations
from pipeline.plan.gains import Gains, find_gains
from pipeline.plan.outline import Plan, make_plan
from pipeline.plan.plan_views import exported, show_build, show_space
from pipeline.plan.reading_speed import GPU_FLOPS
from pipeline.sweep.sweep_file import Sweep, SweepRun
from pipeline.tables import duration, new_table, percent, print_table
from stages.encode.building.recipes import features_column


@dataclass(frozen=True)
class RunPlan:
    """A run: its gains, and the seconds of its steps on a GPU, encoders not counted."""

    run: SweepRun
    gains: Gains
    seconds: float


@dataclass(frozen=True)
class SweepPlan:
    """A sweep. whole: the plan of the cache with the columns of all runs."""

    sweep: Sweep
    whole: Plan
    runs: tuple[RunPlan, ...]

    @property
    def online_seconds(self) -> float:
        """Of encoders in every step of all runs, on one device."""
        return sum(run.gains.saved_seconds for run in self.runs)

    @property
    def build_seconds(self) -> float:
        """Of all columns of encoders that any run reads, over all images, on one device."""
        pace, config = self.whole.pace.building, self.sweep.config
        names = {name for run in self.runs for name in run.run.config.train.encoders}
        views = 1 + config.dataset.flip
        used = {features_column(name) for name in names} & pace.keys()
        return views * self.whole.images.count * sum(pace[name] for name in used)

    @property
    def training_seconds(self) -> float:
        """Of all runs from the cache, on one GPU."""
        return sum(run.seconds for run in self.runs)

    @property
    def saved_seconds(self) -> float:
        """By the cache, with building counted as a loss."""
        return self.online_seconds - self.build_seconds


def plan_sweep(
    sweep: Sweep, images: int | None = None, *, gpus: int = 1, is_measured: bool = False
) -> SweepPlan:
    """Plan the cache and the runs of a sweep; as `make_plan`."""
    whole = make_plan(sweep.config, images, gpus, is_measured=is_measured)
    runs = []
    for run in sweep.runs:
        # Encoders are the same under all runs' names of them.
        config = run.config.model_copy(update={"encoders": sweep.config.encoders})
        flops = durations.trained(config, whole.foreseen, len(whole.images.table.classes)).flops
        gains = find_gains(config, whole.foreseen, whole.images.count, flops, whole.pace)
        seen = config.train.steps * config.train.batch_size
        runs.append(RunPlan(run, gains, seen * flops / GPU_FLOPS))
    return SweepPlan(sweep, whole, tuple(runs))


def show_sweep_plan(plan: SweepPlan) -> None:
    """Print all of it."""
    whole = plan.whole
    typer.echo(
        f"{plan.sweep.path}: {len(plan.runs)} runs on {whole.config.cache.path}, "
        f"{whole.images.count:,} images ({whole.images.counted_in})"
    )
    show_space(whole)
    show_build(whole)
    table = new_table(
        "run", "model", "encoders", "epochs", "training", "encoders online", has_numbers=True
    )
    for one in plan.runs:
        train = one.run.config.train
        table.add_row(
            one.run.name,
            train.model,
            ", ".join(train.encoders) or "none",
            f"{one.gains.epochs:,.4g}",
            duration(one.seconds),
            duration(one.gains.saved_seconds) if one.gains.saved_seconds else "",
        )
    typer.echo()
    typer.secho(f"Runs, on one GPU at {GPU_FLOPS / 1e12:.0f} TFLOP/s, assumed", bold=True)
    print_table(table)
    typer.echo()
    typer.secho("Cache against encoders online", bold=True)
    print_table(_gains_table(plan))


def _gains_table(plan: SweepPlan) -> Any:
    table = new_table("", "", has_numbers=True)
    table.show_header = False
    online, build = plan.online_seconds, plan.build_seconds
    per, whole = f"on one {plan.whole.device_name}", plan.training_seconds + online
    saved = plan.saved_seconds
    facts = {
        "columns of all runs": decimal(plan.whole.space.whole.bytes),
        "training of all runs from the cache, on one GPU": duration(plan.training_seconds),
        f"encoders in every step of all runs, {per}": duration(online),
        f"encoding once for the cache, {per}": duration(build),
        "saved, encoding counted": duration(saved) if saved > 0 else "nothing: it costs more",
    }
    if saved > 0 and whole and not plan.whole.measured:
        facts["of training with encoders online"] = percent(saved / whole)
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def exported_sweep(plan: SweepPlan) -> Mapping[str, Any]:
    """The plan in values that JSON has: that of the cache, and of each run."""
    return {
        "cache": exported(plan.whole),
        "runs": {
            one.run.name: {
                "model": one.run.config.train.model,
                "encoders": list(one.run.config.train.encoders),
                "epochs": one.gains.epochs,
                "training_seconds": one.seconds,
                "online_seconds": one.gains.saved_seconds,
            }
            for one in plan.runs
        },
        "training_seconds": plan.training_seconds,
        "online_seconds": plan.online_seconds,
        "build_seconds": plan.build_seconds,
        "saved_seconds": plan.saved_seconds,
    }
