"""Which shards of a column are finished, and for which rows.

The ledger is a Zarr array with one chunk, that is one file, per shard. It holds the digest of
the content hashes of the rows that the shard was made from, so that a shard is finished
only for the images it really holds. It is written last, in one step, after the shard's data.
"""

from cache.files import write_atomically
from cache.layout import LEDGER, Column
from cache.rows import RowTable


def record(column: Column, shard: int, rows_digest: bytes) -> None:
    """Declare a shard finished."""
    write_atomically(column.shard_path(LEDGER, shard), rows_digest)


def recorded(column: Column) -> dict[int, bytes]:
    """The row digest of every finished shard."""
    entries = (column.folder / LEDGER.name).glob("c.*.0")
    return {int(entry.name.split(".")[1]): entry.read_bytes() for entry in entries}


def missing(column: Column, rows: RowTable) -> list[int]:
    """The shards that have to be made, in order."""
    finished = recorded(column)
    return [
        shard
        for shard in range(column.shards)
        if finished.get(shard) != rows.digest(column.shard_rows(shard))
    ]
