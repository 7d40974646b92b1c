"""Tables for the terminal, and quantities as people read them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache.verify import Fault

MINUTE, HOUR, DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two."""
    for unit, name in ((DAY, "days"), (HOUR, "hours"), (MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """A share, with a decimal where it is small."""
    return f"{share:.1%}" if abs(share) < 0.1 else f"{share:.0%}"


def count(number: float) -> str:
    """A number of things that need not be whole: two digits, and all before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def operations(flops: float) -> str:
    """A number of floating-point operations."""
    return f"{flops / 1e9:,.1f}" if flops < 1e11 else f"{flops / 1e9:,.0f}"


def rate(per_second: float) -> str:
    """A rate: three digits, and all before the point."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def show_faults(faults: Sequence[Fault]) -> None:
    """Print what is wrong with a cache, and how to fix it."""
    titles = ("where", "what is wrong", "how to fix it")
    show_table(titles, ((fault.where, fault.what, fault.remedy) for fault in faults))


def show_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells under titles."""
    table = new_table(*titles)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def new_table(*titles: str, has_numbers: bool = False) -> Table:
    """A table without lines. has_numbers: whether all columns but the first are numbers."""
    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(titles):
        justify = "right" if has_numbers and place else "left"
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def print_table(table: Table) -> None:
    """Print a table on the terminal, or as text of any width elsewhere."""
    # A pipe has no width: tables in logs are not to be folded at 80 columns.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
