"""A sweep from its file to its page: columns once, then runs, then what came of them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache import ledger
from cache.locking.locks import claimed
from cache.metadata import check_fields, has_column, read_column, root_attributes
from cache.rows import read_rows
from pipeline.exits import ConfigError
from pipeline.sweep.pools import opened
from pipeline.sweep.schedule import Failure, Schedule
from pipeline.sweep.summary import Summary, csv_path, summarise, write_csv
from pipeline.sweep.sweep_file import Sweep
from pipeline.sweep.sweep_page import write_sweep_page
from stages.encode.build_options import Cluster
from stages.encode.building.recipes import declared_recipes
from stages.processes import FollowingError, InterruptedWorkError, stop_request
from stages.progress import say

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Swept:
    """What a sweep came to. page, table: where it stands; failures: runs that kept failing."""

    summary: Summary
    page: Path
    table: Path
    failures: tuple[Failure, ...]


def run_sweep(sweep: Sweep, cluster: Cluster | None = None) -> Swept:
    """Build what lacks, have every run done, and write page and table.

    Goes on where it was stopped. A signal stops all runs with checkpoints, raising
    InterruptedWorkError, after the page was written. Raises ConfigError if others are at it,
    StaleCacheError if the cache holds a column by another recipe.
    """
    if sweep.settings.judge.validation is not None:
        root_attributes(sweep.settings.judge.validation)
    lacking = lacking_columns(sweep)
    with claimed(sweep.folder / ".sweep.lock", say) as other, stop_request() as is_asked:
        if other is not None:
            raise ConfigError(f"{sweep.path} is being run by {other}")
        if lacking:
            say(f"columns to build: {', '.join(lacking)}")
            _build(sweep, cluster, is_asked)
        with opened(cluster, sweep.config.train.device) as pool:
            schedule = Schedule(sweep, pool, is_asked)
            is_done = schedule.work_through()
    failures = tuple(schedule.failures.values())
    summary = summarise(sweep, schedule.failures, schedule.ended_early)
    write_csv(summary, csv_path(sweep))
    page = write_sweep_page(summary, failures)
    if not is_done:
        done = sum(run.state == "done" for run in summary.runs)
        raise InterruptedWorkError(
            f"Stopped, with checkpoints; {done} of {len(summary.runs)} runs are done",
            remedy=f"Run the same command to go on. So far: {page}",
        )
    return Swept(summary, page, csv_path(sweep), failures)


def lacking_columns(sweep: Sweep) -> list[str]:
    """The columns of the runs that are missing or not finished.

    Raises StaleCacheError if one is not what the configuration would build.
    """
    path, declared = sweep.config.cache.path, declared_recipes(sweep.config.encode)
    if not path.exists():
        return list(declared)
    root_attributes(path)
    rows, lacking = read_rows(path), []
    for name, recipe in declared.items():
        if not has_column(path, name):
            lacking.append(name)
            continue
        column = read_column(path, name, len(rows))
        check_fields(column, recipe)
        if ledger.missing(column, rows):
            lacking.append(name)
    return lacking


def _build(sweep: Sweep, cluster: Cluster | None, is_asked: Callable[[], bool]) -> None:
    """Build in a process of its own, which says how far it is, and frees its devices at its end.

    Raises FollowingError if it fails, InterruptedWorkError if it was stopped.
    """
    options = [part for text in sweep.cache_overrides for part in ("--set", text)]
    if cluster is not None and cluster.scheduler is not None:
        options += ["--scheduler", cluster.scheduler]
    elif cluster is not None:
        options += ["--workers", str(cluster.workers)]
    command = [sys.executable, "-P", "-m", "pipeline", "build", "--config", sweep.base, *options]
    with subprocess.Popen(command, cwd=sweep.place, start_new_session=True) as child:
        try:
            while child.poll() is None and not is_asked():
                time.sleep(POLL_SECONDS)
        finally:
            # As Ctrl-C: it keeps what it measured.
            child.send_signal(signal.SIGINT)
    if is_asked():
        raise InterruptedWorkError(
            "Stopped while building", remedy="Run the same command to go on."
        )
    if child.returncode:
        raise FollowingError("the build failed, and said why")
