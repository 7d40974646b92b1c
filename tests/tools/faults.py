"""Faults to plant in a finished column, `x`, of at least two shards, with an array `tokens`."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zarr

from cache.recipe import fingerprint


@dataclass(frozen=True)
class Planted:
    """plant: does the harm; where: what `verify` names, after the column; what: what it says;
    shards: those that have to be made again.
    """

    plant: Callable[[Path], object]
    where: str
    what: str
    shards: int = 1


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def swap_with_checksums(column: Path) -> None:
    """Each of the two shards is whole by itself."""
    swap(column / "tokens/c.0.0.0", column / "tokens/c.1.0.0")
    swap(column / "crc32c/c.0.0", column / "crc32c/c.1.0")


def edit_attribute(column: Path, name: str, value: object) -> None:
    attributes = zarr.open_group(column).attrs
    attributes[name] = value


def edit_recipe_and_fingerprint(column: Path) -> None:
    recipe = {**zarr.open_group(column).attrs["recipe"], "crop": "another"}
    edit_attribute(column, "recipe", recipe)
    edit_attribute(column, "fingerprint", fingerprint(recipe))


def edit_shape(column: Path) -> None:
    file = column / "tokens/zarr.json"
    metadata = json.loads(file.read_text())
    metadata["shape"][1] += 1
    file.write_text(json.dumps(metadata))


def edit_label(column: Path) -> None:
    labels = zarr.open_array(column.parent.parent / "rows/label", mode="r+")
    labels[7] = (labels[7] + 1) % 3


PLANTED = {
    "a flipped bit": Planted(
        lambda x: flip(x / "tokens/c.1.0.0", 5000),
        "/tokens shard 1",
        "checksums differ in 1 of its rows 0 to 7",
    ),
    "a truncated shard": Planted(
        lambda x: truncate(x / "tokens/c.1.0.0"), "/tokens shard 1", " bytes instead of "
    ),
    "a missing shard": Planted(
        lambda x: (x / "tokens/c.1.0.0").unlink(), "/tokens shard 1", "its file is missing"
    ),
    "missing checksums": Planted(
        lambda x: (x / "crc32c/c.1.0").unlink(), " shard 1", "the file of its checksums is missing"
    ),
    "two swapped shards": Planted(
        lambda x: swap(x / "tokens/c.0.0.0", x / "tokens/c.1.0.0"),
        "/tokens shard 0",
        "checksums differ in 8 of its rows 0 to 7",
        shards=2,
    ),
    "two shards swapped with their checksums": Planted(
        swap_with_checksums, " shard 1", "does not fit its checksums and recipe", shards=2
    ),
    "a shard without ledger entry": Planted(
        lambda x: (x / "ledger/c.0.0").unlink(), " shard 0", "it has no ledger entry"
    ),
    "swapped ledger entries": Planted(
        lambda x: swap(x / "ledger/c.0.0", x / "ledger/c.1.0"),
        " shard 1",
        "is of other images",
        shards=2,
    ),
    "an edited recipe": Planted(
        lambda x: edit_attribute(x, "recipe", {"size": 4}), "", "the recipe was edited", shards=0
    ),
    "an edited recipe with its fingerprint": Planted(
        edit_recipe_and_fingerprint, " shard 1", "does not fit its checksums and recipe", shards=0
    ),
    "an edited list of arrays": Planted(
        lambda x: edit_attribute(x, "arrays", ["tokens"]),
        "",
        "the list of its arrays was edited",
        shards=0,
    ),
    "an edited shape": Planted(edit_shape, "/tokens", "its zarr.json was edited", shards=0),
    "an array's metadata gone": Planted(
        lambda x: (x / "tokens/zarr.json").unlink(), "/tokens", "zarr.json cannot be read", shards=0
    ),
    "a whole array gone": Planted(
        lambda x: shutil.rmtree(x / "tokens"), "/tokens", "zarr.json cannot be read", shards=3
    ),
    "a column's metadata gone": Planted(
        lambda x: (x / "zarr.json").unlink(), "", "its zarr.json cannot be read", shards=0
    ),
    "an edited label": Planted(
        edit_label, "rows", "labels or content hashes were edited", shards=0
    ),
}
