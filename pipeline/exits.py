"""How a command ends: exit codes, and errors that are meant for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from cache.errors import RepaCacheError
from stages.interrupt import InterruptedWorkError

FAILED = 1
# What a shell reports for a command that Ctrl-C ended.
INTERRUPTED = 130


@contextmanager
def reported_errors(debug: bool) -> Iterator[None]:
    """Show errors that are meant for the user as one message, without a traceback."""
    try:
        yield
    except (RepaCacheError, OSError) as error:
        if debug:
            raise
        # Plain text: rich would wrap paths and colour numbers.
        typer.echo(f"repa-cache: {error}", err=True)
        raise typer.Exit(
            INTERRUPTED if isinstance(error, InterruptedWorkError) else FAILED
        ) from None
    except KeyboardInterrupt:
        typer.echo("repa-cache: stopped. Run the same command to go on.", err=True)
        raise typer.Exit(INTERRUPTED) from None
