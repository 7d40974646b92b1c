"""Tables for the terminal."""

import sys
from collections.abc import Mapping, Sequence
from itertools import islice

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cache.layout import VALID, Column
from cache.verify import Fault
from stages.encode.fidelity import Fidelity
from stages.sample.results import Result

# Of a long list of images.
SHOWN_IMAGES = 50


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


def show_columns(columns: Sequence[Column]) -> None:
    """Print what a cache holds of some columns."""
    table = _table("array", "type", "row", "shards", "on disk")
    for column in columns:
        for array in (a for a in column.arrays if a != VALID):
            row = " x ".join(map(str, array.row_shape))
            paths = [column.shard_path(array, shard) for shard in range(column.shards)]
            sizes = [path.stat().st_size for path in paths if path.exists()]
            shards = f"{len(sizes):,} of {column.shards:,}"
            name = f"{column.name}/{array.name}"
            table.add_row(name, array.dtype, row, shards, decimal(sum(sizes)))
    _print(table)


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
    table = _table("metric", "value", "samples", "reference", "of images", "remarks")
    for one in results:
        images = "" if one.reference_images is None else f"{one.reference_images:,}"
        table.add_row(
            one.metric,
            one.shown,
            f"{one.images:,}",
            one.reference or "",
            images,
            "; ".join(one.remarks),
        )
    _print(table)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _print(table: Table) -> None:
    # A pipe has no width: tables in logs are not to be folded at 80 columns.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def show_rows(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under their titles."""
    table = _table(*titles)
    for row in rows:
        table.add_row(*row)
    _print(table)
