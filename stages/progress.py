"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread

from rich import progress as bars
from rich.console import Console, RenderableType
from rich.text import Text

# Pauses between plain lines: at first, and after some minutes, when a reader knows the pace.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 10.0, 60.0

# bars.Progress goes to stderr, so that results on stdout can be piped.
console = Console(stderr=True)

# Called with the number of finished units and a short text to show beside the rate.
Advance = Callable[[int, str], None]


class _Bar(bars.Progress):
    """A bar with its note below, where a narrow terminal has room for both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["note"], style="dim") for task in self.tasks)


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s")


def say(text: str) -> None:
    """Writes a line, beside the bar if there is one."""
    # Plain text: rich would wrap long lines and colour them.
    console.out(text, highlight=False)


@contextmanager
def progress(
    title: str, total: int | None, unit: str, done: int = 0, *, quiet: bool = False
) -> Iterator[Advance]:
    """Shows how far a piece of work is; yields a function that reports finished units.

    title: what is done, as in "tokens of NAME"; total, done: units in all, None for work that
    cannot be counted, and finished by an earlier run; unit: their name, a plural; quiet: show
    nothing, as when there is nothing to do.
    """
    if quiet or (total is not None and done >= total):
        yield lambda _units, _note: None
        return
    show = _bar if console.is_terminal else _lines
    with show(title, total, unit, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        bars.TextColumn("{task.description:<8}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        _Rate(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with _Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, unit=unit, note="")
        yield lambda units, note: bar.update(task, advance=units, note=note)


@contextmanager
def _lines(title: str, total: int | None, unit: str, done: int) -> Iterator[Advance]:
    state, ended = _State(title, total, unit, done), Event()
    say(state.begun)

    def report() -> None:
        while not ended.wait(_pause(state.seconds)):
            say(state.line)

    reporter = Thread(target=report, name=f"progress of {title}", daemon=True)
    reporter.start()
    try:
        yield state.advance
    finally:
        ended.set()
        reporter.join()
    if total is not None:
        say(state.line)


def _pause(seconds: float) -> float:
    """Until the next line, of work that has taken so long."""
    return min(max(FIRST_PAUSE_SECONDS, seconds / 6), LAST_PAUSE_SECONDS)


@dataclass
class _State:
    """A piece of work and how far it is. done: by an earlier run; finished: with these."""

    title: str
    total: int | None
    unit: str
    done: int
    note: str = ""
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.finished = self.done

    def advance(self, units: int, note: str) -> None:
        self.finished, self.note = self.finished + units, note

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    @property
    def begun(self) -> str:
        return f"{self.title} ..." if self.total is None else f"{self.title}: {self._count}"

    @property
    def line(self) -> str:
        if self.total is None:
            return f"{self.title}: {timedelta(seconds=round(self.seconds))}"
        rate = (self.finished - self.done) / self.seconds
        parts = [self._count, f"{rate:,.1f} {self.unit}/s"]
        if self.finished == self.total:
            parts.append(f"in {timedelta(seconds=round(self.seconds))}")
        else:
            left = timedelta(seconds=round((self.total - self.finished) / rate)) if rate else "?"
            parts.append(f"{left} left")
        if self.note:
            parts.append(self.note)
        return f"{self.title}: {', '.join(parts)}"

    @property
    def _count(self) -> str:
        return f"{self.finished}/{self.total} {self.unit}"
