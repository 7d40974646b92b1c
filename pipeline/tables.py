"""Tables for the terminal."""

from __future__ import annotations

import sys
from itertools import islice
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cache.layout import VALID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cache.layout import Column
    from cache.verify import Fault
    from stages.encode.measuring.fidelity import Fidelity
    from stages.evaluate.results import Result

# Of a long list of images.
SHOWN_IMAGES = 50


def show_faults(faults: Sequence[Fault]) -> None:
    """Print what is wrong with a cache, and how to fix it."""
    table = new_table("where", "what is wrong", "how to fix it")
    for fault in faults:
        table.add_row(fault.where, fault.what, fault.remedy)
    print_table(table)


def show_fidelity(measured: Sequence[Fidelity]) -> None:
    """Print how true stored tensors are."""
    table = new_table("array", "storage", "rows", *("cosine: mean", "1st percentile", "minimum"))
    for title in ("relative error", "alignment loss"):
        table.add_column(title)
    for one in measured:
        change = "" if one.loss_change is None else f"{one.loss_change:+.1e}"
        cosines = (f"{value:.6f}" for value in (one.mean, one.percentile1, one.minimum))
        table.add_row(one.array, one.storage, f"{one.rows:,}", *cosines, f"{one.error:.1e}", change)
    print_table(table)


def show_columns(columns: Sequence[Column]) -> None:
    """Print what a cache holds of some columns."""
    table = new_table("array", "type", "row", "shards", "on disk")
    for column in columns:
        for array in (a for a in column.arrays if a != VALID):
            row = " x ".join(map(str, array.row_shape))
            paths = [column.shard_path(array, shard) for shard in range(column.shards)]
            sizes = [path.stat().st_size for path in paths if path.exists()]
            shards = f"{len(sizes):,} of {column.shards:,}"
            name = f"{column.name}/{array.name}"
            table.add_row(name, array.dtype, row, shards, decimal(sum(sizes)))
    print_table(table)


def show_invalid(invalid: Mapping[str, str]) -> None:
    """Print which images could not be decoded, and why."""
    if not invalid:
        return
    images = "1 image" if len(invalid) == 1 else f"{len(invalid):,} images"
    typer.echo(f"{images} could not be decoded. Training never draws the rows of these:")
    for key, reason in islice(invalid.items(), SHOWN_IMAGES):
        typer.echo(f"  {key}: {reason}")
    if len(invalid) > SHOWN_IMAGES:
        typer.echo(f"  and {len(invalid) - SHOWN_IMAGES:,} more")


def show_results(results: Sequence[Result]) -> None:
    """Print metrics of samples."""
    titles = ("metric", "value", "floor", "samples", "reference", "of images", "remarks")
    table = new_table(*titles)
    for one in results:
        images = "" if one.reference_images is None else f"{one.reference_images:,}"
        table.add_row(
            one.metric,
            one.shown,
            one.shown_floor,
            f"{one.images:,}",
            one.shown_reference,
            images,
            "; ".join(one.remarks),
        )
    print_table(table)


def show_comparison(names: Sequence[str], results: Sequence[Sequence[Result]]) -> None:
    """Print metrics of several samples, a row for each. names: of the samples."""
    floor = "in brackets the floor: what as many real images are measured at"
    metrics = list(dict.fromkeys(one.metric for of_one in results for one in of_one))
    table = new_table("samples", "images", *metrics, has_numbers=True)
    notes: dict[str, dict[str, None]] = {}
    for name, of_one in zip(names, results, strict=True):
        by_metric = {one.metric: one for one in of_one}
        cells = (_with_floor(by_metric[metric]) for metric in metrics)
        table.add_row(name, f"{of_one[0].images:,}", *cells)
        for one in of_one:
            for remark in one.remarks:
                notes.setdefault(f"{one.metric}: {remark}", {})[name] = None
    print_table(table)
    against = [one.against for of_one in results for one in of_one if one.reference]
    for line in dict.fromkeys([*against, floor]):
        typer.echo(line)
    for note, said_of in notes.items():
        typer.echo(note if len(said_of) == len(names) else f"{note} ({', '.join(said_of)})")


def _with_floor(result: Result) -> str:
    return result.shown + (f" ({result.shown_floor})" if result.floor is not None else "")


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
