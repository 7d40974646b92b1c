"""Checking a whole cache, with its progress."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.verify import Fault, check_shard, survey
from stages.progress import progress


def find_faults(path: Path, threads: int) -> list[Fault]:
    """All faults of the cache at `path`. Reads every byte of it once."""
    found = survey(path)
    faults = list(found.faults)
    total = sum(len(column.shard_rows(shard)) for column, shard, _ in found.shards)
    with ThreadPoolExecutor(threads) as pool, progress("verify", total, "rows") as advance:
        checks = pool.map(lambda shard: check_shard(*shard), found.shards)
        for (column, shard, _), some in zip(found.shards, checks, strict=True):
            faults += some
            advance(len(column.shard_rows(shard)), "")
    return faults
