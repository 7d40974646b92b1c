"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_EVERY_SECONDS = 60.0

# Progress goes to stderr, so that results on stdout can be piped.
console = Console(stderr=True)

# Called with the number of finished units and a short text to show beside the rate.
Advance = Callable[[int, str], None]


class _Bar(Progress):
    """A bar with its note below, where a narrow terminal has room for both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(task.fields["note"], style="dim") for task in self.tasks)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s")


def say(text: str) -> None:
    """A line beside the progress."""
    # Plain text: rich would wrap long lines and colour them.
    console.out(text, highlight=False)


@contextmanager
def progress(
    title: str, total: int, unit: str, done: int = 0, *, quiet: bool = False
) -> Iterator[Advance]:
    """Shows how far a piece of work is; yields a function that reports finished units.

    total, done: units in all, and finished by an earlier run; unit: their name, a plural;
    quiet: show nothing, as when there is nothing to do.
    """
    if quiet or done >= total:
        yield lambda _units, _note: None
        return
    show = _bar if console.is_terminal else _lines
    with show(title, total, unit, done) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _Bar(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, unit=unit, note="")
        yield lambda units, note: bar.update(task, advance=units, note=note)


@contextmanager
def _lines(title: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    finished = done
    note = ""

    def report() -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = (finished - done) / seconds
        left = str(timedelta(seconds=round((total - finished) / rate))) if rate else "?"
        # Plain print: rich would wrap long lines and colour them.
        line = f"{title}: {finished}/{total} {unit}, {rate:,.1f} {unit}/s, {left} left"
        console.file.write(f"{line}, {note}\n" if note else f"{line}\n")
        console.file.flush()

    def advance(units: int, text: str) -> None:
        nonlocal finished, note, last
        finished, note = finished + units, text
        if time.monotonic() - last >= LINE_EVERY_SECONDS:
            last = time.monotonic()
            report()

    yield advance
    report()
