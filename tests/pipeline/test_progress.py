"""What is said of long work where there is no terminal."""

import io
import threading
import time

import pytest
from rich.console import Console

from stages import progress as module
from stages.progress import progress

PATIENCE_SECONDS = 30


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written, with pauses short enough for a test."""
    stream = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=stream))
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    return stream


def wait_for_lines(said: io.StringIO, count: int) -> list[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (lines := said.getvalue().splitlines()) and len(lines) < count:
        assert time.monotonic() < deadline, lines
        threading.Event().wait(0.01)
    return lines


def test_work_is_named_at_once_also_before_any_of_it_is_done(said: io.StringIO) -> None:
    with progress("tokens of a-vit", 10, "images"):
        assert said.getvalue() == "tokens of a-vit: 0/10 images\n"


def test_lines_go_on_while_a_single_unit_takes_long(said: io.StringIO) -> None:
    with progress("probe of a-vit", 4, "epochs", done=1) as advance:
        *_, last = wait_for_lines(said, 3)
        assert last == "probe of a-vit: 1/4 epochs, 0.0 epochs/s, ? left"
        advance(2, "a note")
        count = len(said.getvalue().splitlines())
        assert wait_for_lines(said, count + 2)[-1].startswith("probe of a-vit: 3/4 epochs, ")
    assert said.getvalue().splitlines()[-1].endswith(" left, a note")
    assert "in 0:00:00" not in said.getvalue()
    assert not [t for t in threading.enumerate() if t.name.startswith("progress of")]


def test_the_end_is_said_unless_the_work_failed(said: io.StringIO) -> None:
    with progress("verify", 2, "rows") as advance:
        advance(2, "")
    assert said.getvalue().splitlines()[-1].endswith(" rows/s, in 0:00:00")
    with pytest.raises(ValueError, match="planted"), progress("other", 2, "rows"):
        raise ValueError("planted")
    assert said.getvalue().splitlines()[-1] == "other: 0/2 rows"


def test_work_that_cannot_be_counted_says_how_long_it_takes(said: io.StringIO) -> None:
    with progress("listing data", None, ""):
        assert said.getvalue() == "listing data ...\n"
        assert wait_for_lines(said, 2)[-1] == "listing data: 0:00:00"


def test_nothing_is_said_of_nothing_to_do_or_in_other_processes(said: io.StringIO) -> None:
    for done, quiet in ((3, False), (0, True)):
        with progress("build", 3, "images", done=done, quiet=quiet) as advance:
            advance(1, "")
    assert said.getvalue() == ""


def test_pauses_grow_from_ten_seconds_to_a_minute() -> None:
    pauses = [module._pause(seconds) for seconds in (0, 30, 60, 120, 360, 86_400)]
    assert pauses == [10, 10, 10, 20, 60, 60]
