"""What a cache holds as tables, for the terminal and for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import typer
from rich.filesize import decimal

from cache.layout import VALID
from pipeline.inspection.contents import CachedColumn, Contents, RunUse
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
    size = decimal(sum(held.disk_bytes for held in contents.columns))
    if rows is None:
        return [f"{contents.path}: {size} in columns; the row table cannot be read"]
    whole = np.logical_and.reduce([held.there for held in contents.columns], axis=0)
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
    faults = f"faults: {len(contents.faults):,}, which are listed below"
    captions = []
    if contents.captions is not None:
        texts, images, said = contents.captions
        size_of_texts = decimal(sum(held.disk_bytes for held in contents.texts))
        captions = [
            f"captions: {said:,} of {images:,} images, {texts:,} texts; {size_of_texts}",
        ]
    return [
        f"{contents.path}: {len(rows):,} images, {complete:,} of them whole and valid in all "
        f"columns; {size}",
        f"{len(rows.classes):,} classes; images of a class: {spread}",
        *captions,
        f"rows: {_short(rows.fingerprint)}, permuted by seed {root.get('permutation_seed')}, "
        f"{root.get('rows_per_shard'):,} in a shard",
        *([faults] if contents.faults else []),
    ]


def cache_listings(contents: Contents) -> list[Listing]:
    """All that is known of a cache, as tables that an ordinary terminal has room for."""
    columns = (*contents.columns, *contents.texts)
    return [
        Listing(
            "columns",
            ("column", "grid", "dims", "storage", "on disk", "shards", "invalid"),
            tuple(_size(held, contents) for held in columns),
        ),
        Listing("arrays", ("array", "type", "row"), tuple(_arrays(columns))),
        Listing(
            "made by",
            ("column", "model", "input", "layer", "precision"),
            tuple(_recipe(held) for held in columns),
        ),
        Listing(
            "identity",
            ("column", "fingerprint", "weights", "created"),
            tuple(_identity(held) for held in columns),
        ),
        Listing("made with", ("software", "columns"), tuple(_software(columns))),
        Listing("not as configured", ("column", "difference"), tuple(_differences(contents))),
        Listing(
            "used by",
            ("run", "model", "step", "images", "columns", "other versions of"),
            tuple(_use(run) for run in contents.runs),
        ),
        Listing(
            "what is wrong",
            ("where", "what", "how to fix it"),
            tuple((fault.where, fault.what, str(fault.remedy)) for fault in contents.faults),
        ),
    ]


def _size(held: CachedColumn, contents: Contents) -> tuple[str, ...]:
    """How much a column holds."""
    column, (height, width, dims) = held.column, held.shape
    shards, invalid = f"{held.finished:,} of {column.shards:,}", f"{held.invalid:,}"
    if contents.rows is None:
        shards = invalid = UNKNOWN
    return (
        held.name,
        f"{height} x {width}",
        f"{dims:,}",
        str(column.recipe.get("storage", UNKNOWN)),
        decimal(held.disk_bytes),
        shards,
        invalid,
    )


def _arrays(columns: Sequence[CachedColumn]) -> Iterator[tuple[str, str, str]]:
    for held in columns:
        for array in held.column.arrays:
            if array != VALID:
                row = " x ".join(map(str, array.row_shape))
                yield f"{held.name}/{array.name}", array.dtype, row


def _recipe(held: CachedColumn) -> tuple[str, ...]:
    """What computed a column."""
    recipe = held.column.recipe
    layer = recipe.get("layer", "")
    return (
        held.name,
        str(recipe.get("model", recipe.get("crop", UNKNOWN))),
        f"{recipe.get('max_tokens')} tokens"
        if held.is_of_texts
        else f"{recipe.get('input_size', recipe.get('resolution', UNKNOWN))} px",
        _layer(held.is_of_texts, layer),
        "imported" if recipe.get("imported") else str(recipe.get("compute", "")),
    )


def _layer(is_of_texts: bool, layer: object) -> str:
    if isinstance(layer, int):
        return f"layer {layer}" if is_of_texts else f"stage {layer}"
    return str(layer)


def _identity(held: CachedColumn) -> tuple[str, ...]:
    """Digests of what decided a column's bytes, and when it was begun."""
    weights = str(held.column.recipe.get("weights_sha256", ""))
    created = str(held.provenance.get("created", UNKNOWN))
    return (
        held.name,
        _short(held.column.fingerprint),
        _short(weights),
        created.replace("T", " ").replace("+00:00", " UTC"),
    )


def _differences(contents: Contents) -> Iterator[tuple[str, str]]:
    """Where the cache is not what the configuration would build."""
    for held in (*contents.columns, *contents.texts):
        if held.changes is None:
            yield held.name, "not in the configuration"
        elif held.changes:
            yield held.name, "; ".join(held.changes)
    yield from ((name, "cannot be read") for name in contents.unreadable)
    yield from ((name, "not built yet") for name in contents.missing)


def _use(run: RunUse) -> tuple[str, ...]:
    """Which columns a run used."""
    columns, others = ", ".join(run.columns), ", ".join(run.others)
    return run.run.name, run.model, f"{run.step:,}", run.images, columns, others


def _software(columns: Sequence[CachedColumn]) -> Iterator[tuple[str, str]]:
    """Which versions made which columns; most often the same made all."""
    made: dict[str, list[str]] = {}
    for held in columns:
        made.setdefault(_versions(held.provenance), []).append(held.name)
    for versions, names in made.items():
        yield versions, "all" if len(made) == 1 else ", ".join(names)


def _versions(provenance: Mapping[str, str]) -> str:
    packages = (f"{name} {text}" for name, text in provenance.items() if name != "created")
    return ", ".join(packages) or UNKNOWN


def _short(sha256: str) -> str:
    return sha256[:SHOWN_DIGITS]
