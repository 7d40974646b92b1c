"""Which shards of a column are finished, for which images, and with which bytes.

The ledger is a Zarr array with one chunk, that is one file, per shard. An entry has two
halves: the digest of the content hashes of the images that the shard was made from, so that a
shard is finished only for the images it really holds; and a seal over the column's
fingerprint, that digest and the shard's checksums, so that no file of another shard, column or
cache can stand in for one of this. It is written last, in one step.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_atomically
from cache.layout import LEDGER, ArraySpec, Column
from cache.rows import RowTable
from cache.stores.places import for_each

DIGEST_BYTES = 32


def record(column: Column, shard: int, images: bytes) -> None:
    """Declare a shard finished, whose files are all written.

    images: the digest of its rows.
    """
    write_atomically(column.shard_path(LEDGER, shard), images + seal(column, shard, images))


def seal(column: Column, shard: int, images: bytes) -> bytes:
    """What ties an entry to its column and to the bytes of its shard."""
    checksums = column.shard_path(column.crc32c, shard).read_bytes()
    return hashlib.sha256(column.fingerprint.encode() + images + checksums).digest()


def was_made_by(column: Column) -> bool:
    """Whether any finished shard bears witness that the column's recipe made it."""
    for shard, found in Recorded.of(column).entries.items():
        with suppress(FileNotFoundError):
            if seal(column, shard, found[:DIGEST_BYTES]) == found[DIGEST_BYTES:]:
                return True
    return False


def strike(column: Column, shard: int) -> None:
    """Take back that a shard is finished."""
    column.shard_path(LEDGER, shard).unlink(missing_ok=True)


@dataclass(frozen=True)
class Recorded:
    """A column's ledger as it was at some time: the entries of the finished shards."""

    column: Column
    entries: Mapping[int, bytes]

    @classmethod
    def of(cls, column: Column) -> "Recorded":
        # A store is asked for each: web servers do not list what they have.
        shards: Sequence[int] = range(column.shards)
        if isinstance(column.folder, Path):
            names = (path.name for path in (column.folder / LEDGER.name).glob("c.*.0"))
            shards = [int(name.split(".")[1]) for name in names]
        found = for_each(lambda shard: entry(column, shard), shards)
        return cls(column, {shard: one for shard, one in zip(shards, found, strict=True) if one})

    def missing(self, rows: RowTable) -> list[int]:
        """The shards that have to be made, in order."""
        images = {shard: entry[:DIGEST_BYTES] for shard, entry in self.entries.items()}
        spans = enumerate(map(self.column.shard_rows, range(self.column.shards)))
        return [shard for shard, span in spans if images.get(shard) != rows.digest(span)]

    def names(self, array: ArraySpec) -> dict[int, str]:
        """By what the bytes of each finished shard of an array are known, in any cache."""
        return {
            shard: hashlib.sha256(found + array.name.encode()).hexdigest()
            for shard, found in self.entries.items()
        }

    def is_outdated(self, row: int) -> bool:
        """Whether the shard of a row was made anew since."""
        shard = row // self.column.rows_per_shard
        return entry(self.column, shard) != self.entries.get(shard, b"")


def missing(column: Column, rows: RowTable) -> list[int]:
    """The shards that have to be made, in order."""
    return Recorded.of(column).missing(rows)


def is_missing(column: Column, rows: RowTable, shard: int) -> bool:
    """Whether a shard has to be made."""
    return entry(column, shard)[:DIGEST_BYTES] != rows.digest(column.shard_rows(shard))


def finished_rows(column: Column, rows: RowTable, shard: int) -> int:
    """How many of the first rows of a missing shard are there, from before images were added."""
    images, span = entry(column, shard)[:DIGEST_BYTES], column.shard_rows(shard)
    counts = range(len(span), 0, -1) if images else ()
    return next((count for count in counts if rows.digest(span[:count]) == images), 0)


def entry(column: Column, shard: int) -> bytes:
    """What the ledger says of a shard; nothing if it is not finished."""
    try:
        return column.shard_path(LEDGER, shard).read_bytes()
    except FileNotFoundError:
        return b""
