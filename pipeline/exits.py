"""How a command ends: exit codes, and every error as one message."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cache.errors import RepaCacheError
from stages.processes import FollowingError, InterruptedWorkError, LaunchError, local_rank, rank

FAILED = 1
# What a shell reports for a command that Ctrl-C ended.
INTERRUPTED = 130
# How long a process of several waits for the first to say what all have found.
PATIENCE_SECONDS = 2.0

# The program's own code, among whatever is installed beside it.
ROOT = Path(__file__).parents[1]
OWN = tuple(ROOT / package for package in ("pipeline", "stages", "cache"))
# How torch says that the CPU's memory is full, in an error of no kind of its own.
CPU_MEMORY_IS_FULL = "can't allocate memory"


class ConfigError(RepaCacheError):
    """What is wrong with a configuration or with options, a line each."""


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """A command that shows an error as one message, and takes --debug."""

    @wraps(command)
    def reported(*, debug: bool, **options: Any) -> None:
        try:
            _require_utf8_names()
            command(**options)
            # What stays in the buffer would fail where nobody reports it.
            sys.stdout.flush()
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            # The last is a reader that has seen enough, as `head`: typer ends quietly.
            raise
        except KeyboardInterrupt as error:
            _say_once("stopped. Run the same command to go on.", error)
            _leave(INTERRUPTED)
        except Exception as error:
            if debug and not _is_shared():
                raise
            _say_once(traceback.format_exc() if debug else described(error), error)
            _leave(INTERRUPTED if isinstance(error, InterruptedWorkError) else FAILED)

    own = signature(command)
    option = Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    # What typer reads of a command.
    reported.__annotations__ = {**command.__annotations__, "debug": Debug}
    reported.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), option]
    )
    return reported


def _say_once(text: str, error: BaseException) -> None:
    """Say what went wrong, unless another process of the run says it."""
    is_first = _is_first(rank)
    if isinstance(error, ConfigError):
        # All processes of a machine read the same settings.
        is_said = _is_first(local_rank)
    else:
        is_said = is_first or not isinstance(error, (InterruptedWorkError, KeyboardInterrupt))
    if not is_said or isinstance(error, FollowingError):
        return
    if not (is_first or _is_shared()):
        # The first process may find the same, and its launcher then ends this one.
        time.sleep(PATIENCE_SECONDS)
    # Plain text: rich would wrap paths and colour numbers.
    typer.echo(f"repa-cache: {text}", err=True)


def _is_first(number: Callable[[], int | None]) -> bool:
    """Whether a process has the number 0, or none that can be known."""
    try:
        return not number()
    except LaunchError:
        return True


def _is_shared() -> bool:
    """Whether this process has joined others."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


def _leave(code: int) -> NoReturn:
    """End the command; at once, if others may be waiting for this process in an exchange.

    Python would clear up first, which waits for exchanges that are open.
    """
    if not _is_shared():
        raise typer.Exit(code) from None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _require_utf8_names() -> None:
    """Raise ConfigError where names of files are not UTF-8, as they are in caches and settings."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise ConfigError(
            f"Names of files are {encoding} in this locale, expected UTF-8",
            remedy="Set PYTHONUTF8=1, or LC_ALL=C.UTF-8, and run this again.",
        )


def described(error: Exception) -> str:
    """What happened, in words for whoever uses the program."""
    if isinstance(error, RepaCacheError):
        return str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    if _is_about_memory(error):
        return (
            f"Out of memory: {_first_line(error)}\n"
            "Smaller batches need less: train.compute.micro_batches in training, elsewhere "
            "build.batch_size, sample.batch_size or evaluate.batch_size."
        )
    return _unexpected(error)


def _of_the_system(error: OSError) -> str:
    if not error.strerror or error.filename2 is not None:
        return str(error)
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."


def _is_about_memory(error: Exception) -> bool:
    # torch is not imported for this: where it is not, the error is not of its kind.
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and CPU_MEMORY_IS_FULL in str(error)


def _unexpected(error: Exception) -> str:
    """An error that nobody foresaw: what it is, and where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    place = [f for f in frames if any(map(Path(f.filename).is_relative_to, OWN))][-1]
    return (
        f"Unexpected {type(error).__name__}: {_first_line(error)} "
        f"({Path(place.filename).relative_to(ROOT)}, line {place.lineno}, in {place.name})\n"
        "This is a fault of repa-cache or of a library, and no message of its own is written for "
        "it. The same command with --debug shows the traceback, which a report of it needs."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no message"])[0]
