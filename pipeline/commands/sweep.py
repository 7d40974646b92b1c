"""`repa-cache sweep`: many runs on one cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.build import cluster_of
from pipeline.exits import FAILED
from pipeline.launchers import checked_world
from stages.encode.build_options import Cluster

if TYPE_CHECKING:
    from pipeline.sweep.sweep import Swept
    from pipeline.sweep.sweep_file import Sweep

DEFAULT_SWEEP = Path("sweep.toml")


def sweep(
    path: Path = DEFAULT_SWEEP, cluster: Cluster | None = None, *, early_stop: bool | None = None
) -> "Swept":
    """Build what the runs of a sweep lack, train, sample and measure each, and write its page.

    cluster: of which every worker takes a run, by default one after another here; early_stop:
    whether the worse runs end early, by default as the file says.
    """
    from pipeline.sweep.sweep import run_sweep

    return run_sweep(_load(path, early_stop=early_stop), cluster)


def _load(path: Path, *, early_stop: bool | None) -> "Sweep":
    checked_world("sweep")
    from pipeline.sweep.sweep_file import load_sweep

    return load_sweep(path, early_stop=early_stop)


def _list(found: "Sweep") -> None:
    """Print the runs, with how far they are."""
    from pipeline.sweep.states import lacking_steps, trained_step
    from pipeline.sweep.variations import in_words
    from pipeline.tables import show_table

    names = list(dict.fromkeys(name for run in found.runs for name in run.settings))
    rows = []
    for run in found.runs:
        step, steps = trained_step(run.folder), run.config.train.steps
        lacking = lacking_steps(run, found.judged_steps(run))
        judged = "" if lacking else ", judged"
        state = f"{step:,} of {steps:,}{judged}" if step else "not begun"
        settings = [in_words(run.settings[n]) if n in run.settings else "" for n in names]
        rows.append((run.name, *settings, state))
    show_table(("run", *names, "steps"), rows)
    judged_steps = sorted({step for run in found.runs for step in found.judged_steps(run)})
    typer.echo(
        f"{len(rows)} runs in {found.folder}, sampled at step "
        f"{', '.join(f'{step:,}' for step in judged_steps)}; measured: "
        f"{', '.join(found.metrics) or 'nothing'}"
    )


def show(swept: "Swept") -> None:
    """Print what came of a sweep."""
    from pipeline.report.reading import savings
    from pipeline.sweep.sweep_page import savings_lines
    from pipeline.tables import new_table, print_table

    summary = swept.summary
    table = new_table("runs", "seeds", "step", *summary.metrics, "state", has_numbers=True)
    for group in summary.groups:
        step = group.steps[-1] if group.steps else None
        spreads = (group.spread(metric, step) if step else None for metric in summary.metrics)
        values = [one.shown if one else "" for one in spreads]
        shown_step = f"{step:,}" if step else ""
        table.add_row(group.name, str(len(group.runs)), shown_step, *values, group.state)
    print_table(table)
    for line in savings_lines(savings(summary.sweep.config, [r.read for r in summary.runs])):
        typer.echo(line)
    typer.echo(f"{swept.page}: the page of all; {swept.table}: its numbers")
    for failure in swept.failures:
        typer.echo(f"{failure.run.name} failed: {failure.error}\n  all that it said: {failure.log}")


def command(
    file: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="What varies, and how runs are judged.")
    ] = DEFAULT_SWEEP,
    workers: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Runs at a time: as many as there are GPUs."),
    ] = 0,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have each worker of this Dask cluster take a run."),
    ] = None,
    early_stop: Annotated[
        bool | None,
        typer.Option(
            "--early-stop/--no-early-stop",
            help="End the worse runs at the steps of [early_stop]; default: as the file says.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how far they are, and do nothing.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what all runs cost and save, and do nothing.")
    ] = False,
) -> None:
    """Train, sample and measure many runs on one cache, and compare them on one page.

    Builds what they lack once. Started again it goes on: finished runs stay, runs that were
    killed or failed are taken up, and new ones in the file are added. Exit code 1 if any failed.

    Example: repa-cache sweep sweep.toml --workers 8
    """
    cluster = cluster_of(workers, scheduler, has_dashboard=False)
    found = _load(file, early_stop=early_stop)
    if dry_run:
        _list(found)
        return
    if plan:
        from pipeline.commands.plan import show_sweep
        from pipeline.sweep.sweep_plan import plan_sweep

        show_sweep(plan_sweep(found))
        return
    from pipeline.sweep.sweep import run_sweep

    swept = run_sweep(found, cluster)
    show(swept)
    if swept.failures:
        raise typer.Exit(FAILED)
