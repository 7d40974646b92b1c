"""Tables for the terminal."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from cache.verify import Fault
from stages.encode.fidelity import Fidelity


def show_faults(faults: Sequence[Fault]) -> None:
    """Print what is wrong with a cache, and what mends it."""
    table = _table("where", "what is wrong", "what mends it")
    for fault in faults:
        table.add_row(fault.where, fault.what, fault.remedy)
    _print(table)


def show_fidelity(measured: Sequence[Fidelity]) -> None:
    """Print how true stored tensors are."""
    table = _table("array", "storage", "rows", *("cosine: mean", "1st percentile", "minimum"))
    for title in ("relative error", "alignment loss"):
        table.add_column(title)
    for one in measured:
        change = "" if one.loss_change is None else f"{one.loss_change:+.1e}"
        cosines = (f"{value:.6f}" for value in (one.mean, one.percentile1, one.minimum))
        table.add_row(one.array, one.storage, f"{one.rows:,}", *cosines, f"{one.error:.1e}", change)
    _print(table)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _print(table: Table) -> None:
    # A pipe has no width: tables in logs are not to be folded at 80 columns.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
