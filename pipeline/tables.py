"""Tables for the terminal: without lines, as wide as it is, and unfolded elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cache.verify import Fault


def show_faults(faults: Sequence[Fault]) -> None:
    """Print what is wrong with a cache, and how to fix it."""
    table = new_table("where", "what is wrong", "how to fix it")
    for fault in faults:
        table.add_row(fault.where, fault.what, fault.remedy)
    print_table(table)


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
