"""The runs of a sweep, each taken up until it is done, over all places that there are."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cache.locking.locks import claimed
from pipeline.sweep.halving import halvings
from pipeline.sweep.pools import Pool
from pipeline.sweep.processes import Ended, Order, Outcome
from pipeline.sweep.states import judging, lacking_steps, logged_step
from pipeline.sweep.sweep_file import Sweep, SweepRun
from pipeline.sweep.work import Work
from pipeline.tables import duration
from stages.progress import Advance, progress, say

POLL_SECONDS, SHOW_SECONDS = 0.2, 2.0
# Of runs at work that a line of progress names.
SHOWN = 4


@dataclass(frozen=True)
class Failure:
    """A run that kept failing. error: of its last process; log: what all of them said."""

    run: SweepRun
    error: str
    log: Path


@dataclass
class Schedule:
    """Which runs are waiting, at work, failed.

    is_asked: whether all of it is to stop; failures: by name; ended_early: the step by name.
    """

    sweep: Sweep
    pool: Pool
    is_asked: Callable[[], bool]
    failures: dict[str, Failure] = field(default_factory=dict)
    ended_early: dict[str, int] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _is_stopping: bool = False

    def work_through(self) -> bool:
        """Have all runs done; whether that was so, and nobody asked to stop."""
        steps = sum(run.config.train.steps for run in self.sweep.runs)
        done = sum(logged_step(run.folder) for run in self.sweep.runs)
        done = min(done, steps)
        before, rung = list(self.sweep.runs), 0
        with progress("sweep", steps, "steps", done) as advance:
            show = Shown(self.sweep.runs, advance, done)
            for until, runs in halvings(self.sweep):
                for run in (run for run in before if run not in runs):
                    self.ended_early[run.name] = rung
                    say(f"{run.name}: ends early, at step {rung:,}")
                self._work_up_to(until, runs, show)
                if self._is_stopping:
                    return False
                before, rung = runs, until or 0
        return True

    def _work_up_to(self, until: int | None, runs: Sequence[SweepRun], show: "Shown") -> None:
        waiting = deque(run for run in runs if self._steps(run, until))
        by_name = {run.name: run for run in runs}
        while waiting or self._since:
            if self.is_asked() and not self._is_stopping:
                self._is_stopping = True
                say("stopping: every run that is at work keeps a checkpoint")
                self.pool.stop()
            if self._is_stopping:
                waiting.clear()
            for place in self.pool.free()[: len(waiting)]:
                run = waiting.popleft()
                self._start(place, run, until)
            for name, ended in self.pool.ended():
                if self._is_to_be_tried_again(by_name[name], ended):
                    waiting.append(by_name[name])
            show.update([name for name in by_name if name in self._since], len(waiting))
            time.sleep(POLL_SECONDS)
        wait_until_free([self._order(run, until).work.lock for run in runs])

    def _steps(self, run: SweepRun, until: int | None) -> tuple[int, ...]:
        """The steps at which a run is yet to be judged."""
        if run.name in self.failures:
            return ()
        steps = lacking_steps(run, self.sweep.judged_steps(run))
        return tuple(step for step in steps if until is None or step <= until)

    def _order(self, run: SweepRun, until: int | None) -> Order:
        logs = self.sweep.folder / "logs"
        lock, steps = logs / f".{run.name}.lock", self._steps(run, until)
        judge = run.judge.model_dump_json()
        work = Work(self.sweep.base, run.overrides, steps, judge, judging(run), str(lock))
        return Order(run.name, self.sweep.place, logs / f"{run.name}.log", work)

    def _start(self, place: str, run: SweepRun, until: int | None) -> None:
        self._tries[run.name] = self._tries.get(run.name, 0) + 1
        self._since[run.name] = time.monotonic()
        again = f", attempt {self._tries[run.name]}" if self._tries[run.name] > 1 else ""
        step = logged_step(run.folder)
        say(f"{run.name}: {f'goes on from step {step:,}' if step else 'begins'}{again}")
        self.pool.start(place, self._order(run, until))

    def _is_to_be_tried_again(self, run: SweepRun, ended: Ended) -> bool:
        took = duration(time.monotonic() - self._since.pop(run.name))
        step = logged_step(run.folder)
        if ended.outcome is Outcome.DONE:
            say(f"{run.name}: step {step:,}, judged, in {took}")
            self._tries.pop(run.name)
            return False
        if self._is_stopping:
            say(f"{run.name}: stopped after step {step:,}")
            return False
        error = ended.error or "it was asked to stop by somebody else"
        first = error.splitlines()[0]
        if self._tries[run.name] < self.sweep.settings.attempts:
            say(f"{run.name}: {first}; it is taken up again")
            return True
        say(f"{run.name}: {first}; left, after {self._tries[run.name]} attempts")
        log = self.sweep.folder / "logs" / f"{run.name}.log"
        self.failures[run.name] = Failure(run, error, log)
        return False


def wait_until_free(locks: Sequence[str]) -> None:
    """Wait for processes whose worker is gone: they stop by themselves, with checkpoints."""
    for lock in map(Path, locks):
        while lock.exists():
            with claimed(lock) as other:
                if other is None:
                    break
            time.sleep(POLL_SECONDS)


class Shown:
    """Progress in steps of all runs. done: those that were known before."""

    def __init__(self, runs: Sequence[SweepRun], advance: Advance, done: int) -> None:
        self._runs, self._advance, self._done = runs, advance, done
        self._last = 0.0

    def update(self, at_work: Sequence[str], waiting: int) -> None:
        """Tell how far all runs are, now and then."""
        if time.monotonic() - self._last < SHOW_SECONDS:
            return
        self._last = time.monotonic()
        reached = sum(logged_step(run.folder) for run in self._runs)
        names = ", ".join(at_work[:SHOWN]) + (" and more" if len(at_work) > SHOWN else "")
        self._advance(max(reached - self._done, 0), f"{names}; {waiting} waiting")
        self._done = max(reached, self._done)
