"""The facts of a cache as tables, for the terminal and for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import typer
from rich.filesize import decimal

from cache.layout import VALID, Column
from pipeline.inspection.contents import ColumnFacts, Contents
from pipeline.tables import show_table

# Digits of a sha256 that are shown, of 64.
SHOWN_DIGITS = 12
UNKNOWN = "?"


@dataclass(frozen=True)
class Listing:
    """A table: what it is about, a title for each of its columns, and its cells."""

    about: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def show_listings(listings: Sequence[Listing]) -> None:
    """Print tables, one after another; those without rows are left out."""
    for listing in listings:
        if listing.rows:
            typer.echo(f"\n{listing.about}:")
            show_table(listing.titles, listing.rows)


def headline(contents: Contents) -> list[str]:
    """What is to be said of a cache as a whole, a line each."""
    rows, root = contents.rows, contents.root
    size = decimal(sum(facts.disk_bytes for facts in contents.columns))
    if rows is None:
        return [f"{contents.path}: {size} in columns; the row table cannot be read"]
    whole = np.logical_and.reduce([facts.there for facts in contents.columns], axis=0)
    complete = int(np.sum(whole)) if contents.columns else 0
    counts = np.bincount(rows.label, minlength=len(rows.classes))
    spread = ", ".join(
        f"{name} {value:,.0f}"
        for name, value in (
            ("fewest", counts.min()),
            ("median", np.median(counts)),
            ("most", counts.max()),
        )
    )
    return [
        f"{contents.path}: {len(rows):,} images, {complete:,} of them whole and valid in all "
        f"columns; {size}",
        f"{len(rows.classes):,} classes; images of a class: {spread}",
        f"rows: {_short(rows.fingerprint)}, permuted by seed {root.get('permutation_seed')}, "
        f"{root.get('rows_per_shard'):,} in a shard",
    ]


def cache_listings(contents: Contents) -> list[Listing]:
    """All that is known of a cache, as tables."""
    lacking = [(name, *[""] * 7, "not built yet") for name in contents.missing]
    broken = [(name, *[UNKNOWN] * 7, "cannot be read") for name in contents.unreadable]
    held = [_held(facts, contents) for facts in contents.columns]
    runs = [
        (
            run.run.name,
            run.model,
            f"{run.step:,}",
            run.images,
            ", ".join(run.columns),
            ", ".join(run.others),
        )
        for run in contents.runs
    ]
    faults = [(fault.where, fault.what, str(fault.remedy)) for fault in contents.faults]
    return [
        Listing(
            "columns",
            (
                *("column", "arrays", "grid", "dims", "storage", "on disk"),
                *("shards", "invalid", "state"),
            ),
            (*held, *broken, *lacking),
        ),
        Listing(
            "made by",
            (
                *("column", "model", "input", "layer", "precision"),
                *("weights", "fingerprint", "created"),
            ),
            tuple(_recipe(facts) for facts in contents.columns),
        ),
        Listing("made with", ("software", "columns"), tuple(_software(contents.columns))),
        Listing(
            "used by",
            ("run", "model", "step", "images", "columns", "other versions of"),
            tuple(runs),
        ),
        Listing("what is wrong", ("where", "what", "what mends it"), tuple(faults)),
    ]


def _held(facts: ColumnFacts, contents: Contents) -> tuple[str, ...]:
    """A line about what a column holds."""
    column, (height, width, dims) = facts.column, facts.shape
    shards, invalid = f"{facts.finished:,} of {column.shards:,}", f"{facts.invalid:,}"
    if contents.rows is None:
        shards = invalid = UNKNOWN
    return (
        facts.name,
        "\n".join(_arrays(column)),
        f"{height} x {width}",
        f"{dims:,}",
        str(column.recipe.get("storage", UNKNOWN)),
        decimal(facts.disk_bytes),
        shards,
        invalid,
        _state(facts),
    )


def _arrays(column: Column) -> Iterator[str]:
    for array in column.arrays:
        if array != VALID:
            yield f"{array.name} {array.dtype} {' x '.join(map(str, array.row_shape))}"


def _state(facts: ColumnFacts) -> str:
    """How a column stands to the configuration."""
    if facts.changes is None:
        return "not in the configuration"
    return "; ".join(facts.changes) or "as configured"


def _recipe(facts: ColumnFacts) -> tuple[str, ...]:
    """A line about what decided a column's bytes."""
    recipe, created = facts.column.recipe, str(facts.provenance.get("created", UNKNOWN))
    layer = recipe.get("layer", "")
    return (
        facts.name,
        str(recipe.get("model", recipe.get("crop", ""))),
        f"{recipe.get('input_size', recipe.get('resolution', UNKNOWN))} px",
        f"stage {layer}" if isinstance(layer, int) else str(layer),
        "imported" if recipe.get("imported") else str(recipe.get("compute", "")),
        _short(str(recipe.get("weights_sha256", ""))),
        _short(facts.column.fingerprint),
        created.replace("T", " ").replace("+00:00", " UTC"),
    )


def _software(columns: Sequence[ColumnFacts]) -> Iterator[tuple[str, str]]:
    """Which versions made which columns; most often the same made all."""
    made: dict[str, list[str]] = {}
    for facts in columns:
        made.setdefault(_versions(facts.provenance), []).append(facts.name)
    for versions, names in made.items():
        yield versions, "all" if len(made) == 1 else ", ".join(names)


def _versions(provenance: Mapping[str, str]) -> str:
    packages = (f"{name} {text}" for name, text in provenance.items() if name != "created")
    return ", ".join(packages) or UNKNOWN


def _short(sha256: str) -> str:
    return sha256[:SHOWN_DIGITS]
